# Pages get other frames and keep their bytes, 16 times over: no leaf leads to an old frame when the host is done, and the
# guest finds each time what it left.
# Pins down: no live leaf has an old frame after an invalidation (rule N1).
.include "guest.inc"
manifest "frames_change.toml"
.set BANK, 0x4000000

.global start
start:
    write_pages BANK, 16
    mov r12d, 16
1:  ring 1
    require_pages 1, BANK, 16
    write_pages BANK, 16
    dec r12d
    jnz 1b
    finish PASS
