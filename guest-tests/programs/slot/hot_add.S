# Memory that is added while the guest runs: before, its place is a hole that reads as ones; from then on it is zero and can
# be written. What the second level remembers of the hole has to go (rule I2).
.include "guest.inc"
manifest "hot_add.toml"
.set BANK, 0x4000000

.global start
start:
    mov ebx, BANK
    cmp qword ptr [rbx], -1
    require_equal 1
    cmp qword ptr [rbx + PAGE], -1
    require_equal 2
    ring 1
    require_zero 3, BANK, 16
    write_pages BANK, 16
    require_pages 4, BANK, 16
    finish PASS
