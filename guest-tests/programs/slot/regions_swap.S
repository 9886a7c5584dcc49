# Two regions change places in one transaction: at no moment is one of them in the other's way, and each keeps what it holds.
# Pins down: all deletes of a transaction come before its adds (rule R8).
.include "guest.inc"
manifest "regions_swap.toml"
.set ONE, 0x4000000
.set OTHER, 0x5000000

.global start
start:
    write_pages ONE, 8
    write_pages OTHER, 8
    mov r12d, 8
1:  ring 1
    require_pages 1, ONE, 8, (OTHER-ONE)
    require_pages 2, OTHER, 8, (ONE-OTHER)
    ring 2
    require_pages 3, ONE, 8
    require_pages 4, OTHER, 8
    dec r12d
    jnz 1b
    ring 1
    finish PASS
