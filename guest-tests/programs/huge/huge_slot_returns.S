# A slot of large pages goes and comes back: so do its large leaves, over the same memory.
# Pins down: a slot that is made again finds large pages again (rules L3, Z3).
.include "guest.inc"
manifest "huge_slot_returns.toml"
.set LARGE, 0x40000000

.global start
start:
    touch_large 1, LARGE, 4
    ring 1
    ring 2
    mov ebx, LARGE + 0x200000
    cmp [rbx], rbx
    require_equal 2
    finish PASS
