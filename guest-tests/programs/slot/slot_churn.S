# A slot that comes and goes 64 times while the guest uses it: each time the memory is what it was, and in between its place
# is a hole.
# Pins down: a deleted slot leaves no leaf (rule Z3), and its place is a hole at once.
.include "guest.inc"
manifest "slot_churn.toml"
.set BANK, 0x4000000

.global start
start:
    write_pages BANK, 4
    mov ebx, BANK
    mov r12d, 64
1:  ring 1
    cmp dword ptr [rbx], -1
    require_equal 1
    ring 2
    inc qword ptr [rbx + 8]
    cmp [rbx], rbx
    require_equal 2
    dec r12d
    jnz 1b
    cmp qword ptr [rbx + 8], 64
    require_equal 3
    finish PASS
