# The host's own mapping becomes read-only: the guest's next write is no MMIO and no fault of its own, the vCPU leaves with
# EFAULT and RIP as it was. Reads go on.
# Pins down: a writable slot over a mapping that is not: EFAULT, RIP unchanged (fault path, step 6).
.include "guest.inc"
manifest "readonly_backing.toml"
.set BANK, 0x4000000

.global start
start:
    mov ebx, BANK
    mov [rbx], rbx
    ring 1
    cmp [rbx], rbx
    require_equal 1
    ring 2
    mov [rbx], rbx
    finish 2
