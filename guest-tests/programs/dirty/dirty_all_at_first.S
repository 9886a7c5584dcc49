# A log that begins with all pages dirty (KVM_DIRTY_LOG_INITIALLY_SET): the first look finds all of them, the second those that
# were written since.
.include "guest.inc"
manifest "dirty_all_at_first.toml"
.set LOG, 0x4000000

.global start
start:
    mov ebx, LOG
    mov [rbx], rbx
    ring 1
    ring 2
    mov [rbx + 6 * PAGE], rbx
    ring 3
    ring 4
    finish PASS
