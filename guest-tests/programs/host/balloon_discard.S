# Pages that the host takes back, as a balloon gives them: no leaf and no frame is left, the guest finds zeros, and what it
# writes then stays. Pages beside them are as they were.
# Pins down: MADV_DONTNEED reaches the second level by the MMU notifier (rules N1, N2).
.include "guest.inc"
manifest "balloon_discard.toml"
.set BANK, 0x4000000

.global start
start:
    write_pages BANK, 16
    ring 1
    require_pages 1, BANK, 4
    require_zero 2, (BANK+4*PAGE), 8
    require_pages 3, (BANK+12*PAGE), 4
    write_pages BANK, 16
    require_pages 4, BANK, 16
    finish PASS
