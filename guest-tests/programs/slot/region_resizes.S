# A region becomes shorter, so that its end is a hole, and as long as before: what was there is there again.
# Pins down: a slot has one size for life: it is deleted and made anew (rule K1).
.include "guest.inc"
manifest "region_resizes.toml"
.set BANK, 0x4000000

.global start
start:
    write_pages BANK, 16
    ring 1
    require_pages 1, BANK, 4
    mov eax, BANK + 4 * PAGE
    cmp word ptr [rax], -1
    require_equal 2
    ring 2
    require_pages 3, BANK, 16
    finish PASS
