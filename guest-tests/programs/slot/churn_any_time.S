# Between any two instructions of the guest its memory moves away, gets other frames and comes back, and a slot beside it goes
# and comes: the guest does not notice. It counts its rounds in each of eight pages.
# Pins down: vCPUs are out of the guest between a slot's end and its return (rule R8).
.include "guest.inc"
manifest "churn_any_time.toml"
.set BANK, 0x4000000

.global start
start:
    xor r12d, r12d
1:  mov r13d, 200               # longer than from one tick to the next
2:  inc r12
    mov ebx, BANK
    mov ecx, 8
3:  inc qword ptr [rbx]
    cmp [rbx], r12
    require_equal 1
    add ebx, PAGE
    dec ecx
    jnz 3b
    dec r13d
    jnz 2b
    until_ticks 8, 1b
    finish PASS
