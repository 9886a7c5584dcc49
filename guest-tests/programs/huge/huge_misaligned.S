# Guest-physical and host-virtual addresses differ by 4 KiB modulo 2 MiB: no large page fits anywhere in the slot (rule L2).
.include "guest.inc"
manifest "huge_misaligned.toml"
.set LARGE, 0x40000000

.global start
start:
    touch_large 1, LARGE, 4
    finish PASS
