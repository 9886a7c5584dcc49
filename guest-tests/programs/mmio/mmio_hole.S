# A hole gives all ones and swallows writes; a device beside it answers. Every width, each one exit.
# Pins down: no slot is an MMIO exit of the access's own width (KVM_EXIT_MMIO).
.include "guest.inc"
manifest "mmio_hole.toml"
.set HOLE, 0x2000000
.set DEVICE, 0x2001000

.global start
start:
    mov ebx, HOLE
    mov rax, [rbx]
    cmp rax, -1
    require_equal 1
    mov dword ptr [rbx + 4], 0x11223344
    mov al, [rbx + 0x10]
    cmp al, 0xff
    require_equal 2

    mov ebx, DEVICE
    mov eax, [rbx]
    cmp eax, 0xcafe1234
    require_equal 3
    mov word ptr [rbx + 2], 0x5678
    finish PASS
