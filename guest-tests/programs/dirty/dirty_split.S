# ROM appears in the middle of logged RAM, so that its slot becomes two: what was written before is in the log, and what is
# written after, too.
# Pins down: a slot that goes is asked for its log first (rule R9).
.include "guest.inc"
manifest "dirty_split.toml"
.set LOG, 0x4000000

.global start
start:
    ring 1
    mov ebx, LOG
    mov [rbx + PAGE], rbx
    mov [rbx + 8 * PAGE], rbx
    ring 2                      # page 8 is ROM
    mov [rbx + 2 * PAGE], rbx
    mov dword ptr [rbx + 8 * PAGE], 1
    mov [rbx + 12 * PAGE], rbx
    ring 3
    finish PASS
