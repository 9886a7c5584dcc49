# Guest page, slot and host page all of 2 MiB and aligned: one leaf of 2 MiB for each (rules L1 to L4
# agree).
.include "guest.inc"
manifest "huge_aligned.toml"
.set LARGE, 0x40000000

.global start
start:
    touch_large 1, LARGE, 4
    finish PASS
