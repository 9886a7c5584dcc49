# Pages are given back between any two instructions: a word is either the one that was written or zero, and never an older
# one or a part of each.
# Pins down: a fault that an invalidation overtakes is retried (rules N1 to N3).
.include "guest.inc"
manifest "discard_any_time.toml"
.set BANK, 0x4000000

.global start
start:
    xor r12d, r12d
1:  mov r13d, 200               # longer than from one tick to the next
2:  inc r12
    mov r14, r12
    shl r14, 32
    or r14, r12                 # the round, twice
    mov ebx, BANK
    mov ecx, 8
3:  mov [rbx], r14
    mov rax, [rbx]
    test rax, rax
    jz 4f
    cmp rax, r14
    require_equal 1
4:  add ebx, PAGE
    dec ecx
    jnz 3b
    dec r13d
    jnz 2b
    until_ticks 8, 1b
    finish PASS
