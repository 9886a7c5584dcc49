# LOCK XADD as the first access to a page: read and write in one, on memory that is not there yet.
# Pins down: a read-modify-write asks for a page that can be written (rule V1: bit 1 of the qualification).
.include "guest.inc"
manifest "locked_touch.toml"
.global start
start:
    mov rdi, offset buffer
    mov ebx, 16
1:  mov eax, 5
    lock xadd [rdi], rax
    cmp rax, 0
    require_equal 1
    mov eax, 2
    lock xadd [rdi], rax
    cmp rax, 5
    require_equal 2
    add rdi, PAGE
    dec ebx
    jnz 1b
    finish PASS

.bss
.balign PAGE
.global buffer
buffer: .skip 16 * PAGE
