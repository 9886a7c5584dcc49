# Two guest-physical addresses of one page: a write through either is in the log of the memory behind them.
# Pins down: a bit for each page of memory, whichever slot it was written through (rule K1: slots may share host
# memory).
.include "guest.inc"
manifest "dirty_alias.toml"
.set LOG, 0x4000000
.set ALIAS, 0x5000000

.global start
start:
    write_pages LOG, 16
    write_pages ALIAS, 16
    ring 1
    mov ebx, LOG
    mov [rbx + PAGE], rbx
    ring 2
    mov ebx, ALIAS
    mov [rbx + 2 * PAGE], rbx
    ring 3
    mov ebx, LOG
    mov [rbx + 2 * PAGE], rbx
    ring 3
    finish PASS
