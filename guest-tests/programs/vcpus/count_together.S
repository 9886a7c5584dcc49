# Four processors count in one page with locked instructions, and one of them finds the sum. All fault on the page at first; it
# gets one frame.
# Pins down: faults of several processors on one page install one leaf (fault path, step 8).
.include "guest.inc"
manifest "count_together.toml"
.set CPUS, 4
.set ROUNDS, 1000

.global start
start:
    mov rsi, offset buffer
    mov ecx, ROUNDS
1:  lock inc qword ptr [rsi]
    lock add dword ptr [rsi + 0x800], 3
    dec ecx
    jnz 1b
    lock inc dword ptr [rip + done]
2:  pause
    test edi, edi
    jnz 2b
    cmp dword ptr [rip + done], CPUS
    jne 2b
    cmp qword ptr [rsi], CPUS * ROUNDS
    require_equal 1
    cmp dword ptr [rsi + 0x800], 3 * CPUS * ROUNDS
    require_equal 2
    finish PASS

.data
done: .long 0

.bss
.balign PAGE
.global buffer
buffer: .skip PAGE
