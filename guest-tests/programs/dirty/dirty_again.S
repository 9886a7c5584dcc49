# A page that was taken from the log is in it again after its next write, and only then: 16 rounds, one page each.
# Pins down: KVM_GET_DIRTY_LOG clears what it reads and protects those pages again (rule D1).
.include "guest.inc"
manifest "dirty_again.toml"
.set LOG, 0x4000000

.global start
start:
    ring 1
    mov ebx, LOG
    mov r12d, 16
1:  mov [rbx + 4 * PAGE], r12
    ring 2
    mov rax, [rbx + 4 * PAGE]
    ring 3
    dec r12d
    jnz 1b
    finish PASS
