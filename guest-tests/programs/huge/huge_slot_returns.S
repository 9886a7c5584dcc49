# A slot of large pages goes and comes back: so do its large leaves, over the same memory.
# Pins down: a slot that is made again finds large pages again (rules L3, Z3).
.include "guest.inc"
manifest "huge_slot_returns.toml"
.set LARGE, 0x40000000

.global start
start:
    mov edi, LARGE
    mov ecx, 4
1:  mov [rdi], rdi              # one page in each 2 MiB
    cmp [rdi], rdi
    require_equal 1
    add rdi, 0x200000
    dec ecx
    jnz 1b
    ring 1
    ring 2
    mov ebx, LARGE + 0x200000
    cmp [rbx], rbx
    require_equal 2
    finish PASS
