# String instructions at a device: each element is an access of its own, in order, whichever way they go.
# Pins down: an exit for each element of a string instruction (KVM_EXIT_MMIO).
.include "guest.inc"
manifest "mmio_string.toml"
.set HOLE, 0x2000000

.global start
start:
    mov edi, HOLE
    mov eax, 0x11223344
    mov ecx, 3
    rep stosd
    mov esi, HOLE + 0x100
    mov rdi, offset buffer
    mov ecx, 2
    rep movsq
    cmp qword ptr [rip + buffer + 8], -1
    require_equal 1
    std
    mov edi, HOLE + 0x202
    mov ecx, 2
    rep stosw
    cld
    finish PASS

.bss
.balign PAGE
buffer: .skip PAGE
