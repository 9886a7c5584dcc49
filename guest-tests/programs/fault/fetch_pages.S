# The same three instructions at the start of 16 pages, each run once: a fetch needs a leaf that allows it.
# Pins down: a violation by a fetch is filled with a leaf that may be executed (rule V1).
.include "guest.inc"
manifest "fetch_pages.toml"
.global start
start:
    mov rdi, offset buffer
    mov ebx, 16
1:  mov rax, [rip + routine]
    mov [rdi], rax
    xor eax, eax
    call rdi
    cmp eax, 0x51
    require_equal 1
    add rdi, PAGE
    dec ebx
    jnz 1b
    finish PASS

.balign 8
routine:
    mov eax, 0x51
    ret
    .skip 2

.bss
.balign PAGE
.global buffer
buffer: .skip 16 * PAGE
