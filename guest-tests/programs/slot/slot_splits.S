# A device appears in the middle of RAM that the guest uses, so that one slot becomes two; and goes, so that two become one.
# No byte beside it changes, and those below it come back.
# Pins down: ranges split where something is in the way, and join again (rules R15 to R17).
.include "guest.inc"
manifest "slot_splits.toml"
.set RAM, 0x4000000
.set DEVICE, 0x4004000

.global start
start:
    write_pages RAM, 8
    mov r12d, 4
1:  ring 1
    require_pages 1, RAM, 4
    mov eax, DEVICE
    cmp dword ptr [rax], 0x77
    require_equal 2
    require_pages 3, DEVICE + PAGE, 3
    ring 2
    require_pages 4, RAM, 8
    dec r12d
    jnz 1b
    finish PASS
