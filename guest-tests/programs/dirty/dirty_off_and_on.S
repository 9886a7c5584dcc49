# What is written while the log is off is in no log, and what nobody has taken when it ends is forgotten.
# Pins down: without LOG_DIRTY_PAGES the bitmap is freed; on again it starts afresh (KVM_SET_USER_MEMORY_REGION).
.include "guest.inc"
manifest "dirty_off_and_on.toml"
.set LOG, 0x4000000

.global start
start:
    ring 1                      # on
    mov ebx, LOG
    mov [rbx + PAGE], rbx
    ring 2                      # off
    mov [rbx + 2 * PAGE], rbx
    ring 1                      # on again
    mov [rbx + 3 * PAGE], rbx
    ring 3
    finish PASS
