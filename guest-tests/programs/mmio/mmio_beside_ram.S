# Eight bytes over the end of RAM: the half in RAM is an access to RAM, the other comes out as MMIO.
# Pins down: KVM splits an access at the page, and hands out the part that has no slot.
.include "guest.inc"
manifest "mmio_beside_ram.toml"
.set RAM, 0x1fff000
.set EDGE, 0x1ffffff + 1 - 4

.global start
start:
    mov ebx, EDGE
    mov rax, 0x1122334455667788
    mov [rbx], rax
    cmp dword ptr [rbx], 0x55667788
    require_equal 1
    mov rcx, [rbx]
    mov rax, 0xffffffff55667788
    cmp rcx, rax
    require_equal 2
    finish PASS
