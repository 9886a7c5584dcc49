# Dirty rings: an entry for each page that is written, and an exit when the ring is full. The guest writes more pages than a
# ring has entries, and none is lost.
# Pins down: a full ring is an exit, and a reset makes room (rule D5).
.include "guest.inc"
manifest "dirty_ring.toml"
.set LOG, 0x4000000
.set PAGES, 5000

.global start
start:
    ring 1
    write_pages LOG, PAGES
    ring 2
    ring 3
    mov eax, LOG + 7 * PAGE
    mov [rax], rax
    ring 4
    finish PASS
