# The dirty log has exactly the pages that were written since it began: not those that were read, nor those written before.
# Pins down: the log begins empty, and a read alone is no write (rule D1).
.include "guest.inc"
manifest "dirty_exact.toml"
.set LOG, 0x4000000

.global start
start:
    write_pages LOG, 16
    ring 1                      # the log begins
    mov ebx, LOG
    mov [rbx + 3 * PAGE], rbx
    mov [rbx + 5 * PAGE + 0xff8], rbx
    mov byte ptr [rbx + 14 * PAGE], 1
    mov rax, [rbx + 7 * PAGE]
    ring 2
    ring 3                      # nothing since
    finish PASS
