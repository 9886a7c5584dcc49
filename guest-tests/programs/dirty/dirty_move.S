# A region moves while it is logged: its slot goes, its log does not (rule R9).
.include "guest.inc"
manifest "dirty_move.toml"
.set LOG, 0x4000000
.set THERE, 0x5000000

.global start
start:
    ring 1
    mov ebx, LOG
    mov [rbx + PAGE], rbx
    ring 2                      # moves
    mov ebx, THERE
    mov [rbx + 9 * PAGE], rbx
    ring 3
    finish PASS
