# The log by hand (KVM_CLEAR_DIRTY_LOG): reading it leaves it as it is until its pages are cleared, and nothing is lost that is
# written between the two.
.include "guest.inc"
manifest "dirty_manual.toml"
.set LOG, 0x4000000

.global start
start:
    write_pages LOG, 16
    ring 1
    mov ebx, LOG
    mov r12d, 4
1:  mov [rbx], rbx
    mov [rbx + 15 * PAGE], rbx
    ring 2
    dec r12d
    jnz 1b
    ring 3
    finish PASS
