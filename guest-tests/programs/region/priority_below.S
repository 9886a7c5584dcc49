# Priorities are signed: memory of priority -1 fills what the others leave, here a hole between two regions.
# Pins down: priority is signed (rule R9).
.include "guest.inc"
manifest "priority_below.toml"
.set LEFT, 0x4000000
.set HOLE, 0x4002000
.set RIGHT, 0x4004000
.set FILL, 0x5000000            # all of the filling region

.global start
start:
    write_pages LEFT, 6
    require_pages 1, LEFT, 6
    require_pages 2, (FILL+2*PAGE), 2, (LEFT-FILL)
    require_zero 3, FILL, 2
    require_zero 4, (FILL+4*PAGE), 2
    finish PASS
