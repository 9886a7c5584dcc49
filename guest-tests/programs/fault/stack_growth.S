# A stack that grows over eight fresh pages: pushes fault, and calls go on.
# Pins down: an instruction that faults has changed no register, RSP neither (SDM vol. 3A, 6.5).
.include "guest.inc"
manifest "stack_growth.toml"
.global start
start:
    mov rsp, offset buffer + 8 * PAGE
    mov ecx, 8 * 512
1:  push rcx
    dec ecx
    jnz 1b
    mov rax, offset buffer
    cmp rsp, rax
    require_equal 1
    xor ecx, ecx
2:  inc ecx
    pop rax
    cmp eax, ecx
    require_equal 2
    cmp ecx, 8 * 512
    jb 2b
    finish PASS

.bss
.balign PAGE
.global buffer
buffer: .skip 8 * PAGE
