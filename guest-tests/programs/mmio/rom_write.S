# A write into ROM changes nothing and reaches the host as an MMIO exit; reads need no exit.
# Pins down: KVM_MEM_READONLY: a write is an MMIO exit, a read none (fault path, step 6: RO_FAULT).
.include "guest.inc"
manifest "rom_write.toml"
.set ROM, 0x800000

.global start
start:
    mov ebx, ROM
    mov eax, [rbx + 8]
    mov dword ptr [rbx + 8], 0x0badf00d
    cmp [rbx + 8], eax
    require_equal 1
    cmp dword ptr [rbx + PAGE], 0
    require_equal 2
    finish PASS
