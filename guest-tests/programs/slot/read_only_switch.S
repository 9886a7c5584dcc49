# Memory becomes read-only while the guest has it mapped for writing: the next write comes out as MMIO and changes nothing.
# Then it is writable again.
# Pins down: READONLY of a slot changes by deleting and making it (rule R6).
.include "guest.inc"
manifest "read_only_switch.toml"
.set BANK, 0x4000000

.global start
start:
    write_pages BANK, 4
    mov ebx, BANK
    ring 1
    mov dword ptr [rbx + 8], 0x51
    cmp dword ptr [rbx + 8], 0
    require_equal 1
    require_pages 2, BANK, 4
    ring 2
    mov dword ptr [rbx + 8], 0x52
    cmp dword ptr [rbx + 8], 0x52
    require_equal 3
    finish PASS
