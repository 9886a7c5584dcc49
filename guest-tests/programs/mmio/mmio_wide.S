# 16 bytes at once come out as two accesses of eight: an exit has no more (KVM_EXIT_MMIO).
.include "guest.inc"
manifest "mmio_wide.toml"
.set HOLE, 0x2000000

.global start
start:
    mov ebx, HOLE
    movdqu xmm0, [rip + value]
    movdqu [rbx], xmm0
    movdqu xmm1, [rbx + 0x20]
    movq rax, xmm1
    cmp rax, -1
    require_equal 1
    finish PASS

.data
.balign 16
value: .quad 0x1111111111111111, 0x2222222222222222
