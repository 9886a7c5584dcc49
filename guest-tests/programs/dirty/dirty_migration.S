# Pages get other frames while they are logged: those that were written stay in the log, and the first write to a new frame is
# in it, too.
# Pins down: an invalidation by the MMU notifier takes leaves, and no bit of a log (rule N1).
.include "guest.inc"
manifest "dirty_migration.toml"
.set LOG, 0x4000000

.global start
start:
    write_pages LOG, 16
    ring 1
    mov ebx, LOG
    mov [rbx + PAGE + 8], rbx
    ring 2                      # other frames
    mov [rbx + 9 * PAGE + 8], rbx
    ring 3
    write_pages LOG, 16
    require_pages 1, LOG, 16
    finish PASS
