# A region moves to another guest-physical address: its memory is there and nowhere else. Then it moves by a part of its own
# size, so that the old place and the new one overlap.
# Pins down: a slot that moves may overlap its own old range; nothing is left at the old one (rules Z2, K4).
.include "guest.inc"
manifest "region_moves.toml"
.set HERE, 0x4000000
.set THERE, 0x5000000
.set BESIDE, 0x4004000

.global start
start:
    write_pages HERE, 8
    ring 1
    require_pages 1, THERE, 8, (HERE-THERE)
    mov eax, HERE
    cmp dword ptr [rax], -1
    require_equal 2
    ring 2
    require_pages 3, HERE, 8
    ring 3
    require_pages 4, BESIDE, 8, (HERE-BESIDE)
    mov eax, HERE
    cmp dword ptr [rax], -1
    require_equal 5
    write_pages BESIDE, 8
    finish PASS
