# Frames change between any two instructions of a guest that counts in eight pages with every width of access: no count is
# lost, none is torn.
# Pins down: a fault that an invalidation overtakes is retried, and no leaf keeps an old frame (rules N1 to N3).
.include "guest.inc"
manifest "frames_any_time.toml"
.set BANK, 0x4000000

.global start
start:
    xor r12d, r12d
1:  mov r13d, 200               # longer than from one tick to the next
2:  inc r12
    mov ebx, BANK
    mov ecx, 8
3:  inc qword ptr [rbx]
    lock add dword ptr [rbx + 0x808], 1
    inc byte ptr [rbx + 0xfff]
    cmp [rbx], r12
    require_equal 1
    cmp [rbx + 0x808], r12d
    require_equal 2
    cmp [rbx + 0xfff], r12b
    require_equal 3
    add ebx, PAGE
    dec ecx
    jnz 3b
    dec r13d
    jnz 2b
    until_ticks 8, 1b
    finish PASS
