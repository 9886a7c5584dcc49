# The same for memory behind a file: the pages are cut out of it, and both places that show them are empty.
# Pins down: an invalidation reaches each slot that shows the range (rule N1).
.include "guest.inc"
manifest "file_discard.toml"
.set SHARED, 0x4000000
.set AGAIN, 0x5000000

.global start
start:
    write_pages SHARED, 8
    require_pages 1, AGAIN, 8, (SHARED-AGAIN)
    ring 1
    require_zero 2, AGAIN, 8
    require_zero 3, SHARED, 8
    write_pages AGAIN, 8
    finish PASS
