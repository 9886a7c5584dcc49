# RAM above 4 GiB and at 1 TiB: guest-physical addresses of more than 32 bits, each under tables of its own at every level.
# Pins down: slots and tables above 32 bits of guest-physical address; each page one leaf (rule Z4).
.include "guest.inc"
manifest "high_memory.toml"
.set ABOVE_4G, 0x100000000
.set AT_1T, 0x10000000000

.global start
start:
    write_pages ABOVE_4G, 4
    write_pages AT_1T, 4
    require_pages 1, ABOVE_4G, 4
    require_pages 2, AT_1T, 4
    finish PASS
