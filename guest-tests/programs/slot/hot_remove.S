# Memory that is removed while the guest runs: no leaf is left when the host is done (rule Z3), and its place is a hole. It
# comes back with what it held.
.include "guest.inc"
manifest "hot_remove.toml"
.set BANK, 0x4000000

.global start
start:
    write_pages BANK, 16
    ring 1
    mov ebx, BANK
    cmp qword ptr [rbx], -1
    require_equal 1
    mov dword ptr [rbx + PAGE], 7
    ring 2
    require_pages 2, BANK, 16
    finish PASS
