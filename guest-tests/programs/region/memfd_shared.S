# Shared memory behind a file: to the guest it is memory like any other, its frames are those of the file.
# Pins down: RAM behind a file, twice in the view: two slots of one range (rules R3, K1).
.include "guest.inc"
manifest "memfd_shared.toml"
.set SHARED, 0x4000000
.set AGAIN, 0x5000000

.global start
start:
    require_zero 1, SHARED, 8
    write_pages SHARED, 8
    require_pages 2, AGAIN, 8, (SHARED-AGAIN)
    finish PASS
