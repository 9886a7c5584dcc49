# Two RAM regions overlap by two pages: the higher priority is seen there, the lower one around it.
# Pins down: siblings overlap by priority (rules R9, R15).
.include "guest.inc"
manifest "overlap_priority.toml"
.set LOWER, 0x4000000

.global start
start:
    mov edi, LOWER
    mov ecx, 6
1:  mov [rdi], rdi
    add rdi, PAGE
    dec ecx
    jnz 1b

    # The upper region's block once more, by an alias: its pages 0 and 1 are the LOWER pages 2 and 3.
    mov esi, 0x5000000
    cmp qword ptr [rsi], LOWER + 2 * PAGE
    require_equal 1
    cmp qword ptr [rsi + PAGE], LOWER + 3 * PAGE
    require_equal 2
    # The lower region's block once more: what the upper one hides was never written.
    mov esi, 0x6000000
    cmp qword ptr [rsi + 2 * PAGE], 0
    require_equal 3
    cmp qword ptr [rsi + 4 * PAGE], LOWER + 4 * PAGE
    require_equal 4
    finish PASS
