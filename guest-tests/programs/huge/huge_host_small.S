# The host has small pages only: so has the second level, whatever the guest maps (rule L3).
.include "guest.inc"
manifest "huge_host_small.toml"
.set LARGE, 0x40000000

.global start
start:
    touch_large 1, LARGE, 4
    finish PASS
