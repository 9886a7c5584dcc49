# The guest maps 4 KiB pages over memory of 2 MiB pages: the second level still has 2 MiB, a shadow what the guest has (rule L4).
.include "guest.inc"
manifest "huge_guest_small.toml"
.set LARGE, 0x40000000

.global start
start:
    touch_large 1, LARGE, 4
    finish PASS
