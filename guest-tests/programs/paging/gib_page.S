# A 1 GiB page of the guest's own over 1 GiB of RAM: pages at its start, across it and at its end.
# Pins down: a leaf at level 3 of the guest's tables, over whatever the second level has (rules L4, I1).
.include "guest.inc"
manifest "gib_page.toml"
.set HUGE, 0x4000000000
.set MEMORY, 0x40000000

.global start
start:
    mov rdi, HUGE
    mov ecx, 8
1:  mov [rdi], rdi
    mov rdx, rdi
    mov rax, MEMORY - HUGE
    add rdx, rax
    cmp [rdx], rdi
    require_equal 1
    add rdi, 0x8000000
    dec ecx
    jnz 1b
    mov rdi, HUGE + 0x3ffff000
    mov [rdi], rdi
    finish PASS
