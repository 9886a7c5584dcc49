# A device page in the middle of a large page: the pages around it are small, as their slots end inside it; large ones go on
# beside them.
# Pins down: a large leaf lies in one slot (rule L2).
.include "guest.inc"
manifest "huge_hole.toml"
.set LARGE, 0x40000000

.global start
start:
    touch_large 1, LARGE, 4
    mov edi, LARGE + 0x300000
    cmp dword ptr [rdi], 0x77
    require_equal 2
    finish PASS
