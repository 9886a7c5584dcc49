# A slot that ends 4 KiB short of a large page: its last pages are small, those before large (rule L2).
.include "guest.inc"
manifest "huge_short_tail.toml"
.set LARGE, 0x40000000

.global start
start:
    touch_large 1, LARGE, 4
    finish PASS
