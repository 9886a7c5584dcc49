# A page that was touched once takes no second fault: spurious faults of one processor are zero.
# Pins down: pf_spurious is zero for one processor (fault path, step 2).
.include "guest.inc"
manifest "touch_again.toml"
.global start
start:
    write_pages buffer, 32
    ring 1
    write_pages buffer, 32
    require_pages 1, buffer, 32
    ring 2
    finish PASS

.bss
.balign PAGE
.global buffer
buffer: .skip 32 * PAGE
