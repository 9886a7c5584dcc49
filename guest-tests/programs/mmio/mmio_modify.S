# An instruction that reads and writes a device's register does both, once each, with the value that the device gave.
# Pins down: the emulator reads and writes once each (KVM_EXIT_MMIO).
.include "guest.inc"
manifest "mmio_modify.toml"
.set DEVICE, 0x2000000

.global start
start:
    mov ebx, DEVICE
    add dword ptr [rbx], 1
    mov ecx, 2
    lock xadd [rbx + 8], ecx
    cmp ecx, 0x40
    require_equal 1
    mov edx, 7
    xchg [rbx + 0x10], edx
    cmp edx, 0x40
    require_equal 2
    cmp byte ptr [rbx + 0x18], 0x40     # reads alone
    require_equal 3
    finish PASS
