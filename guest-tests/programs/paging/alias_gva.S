# Four guest-virtual addresses of one page: what is written through one is read through all, and all have one frame.
# Pins down: any number of guest entries may lead to one frame (rule H5 of shadows).
.include "guest.inc"
manifest "alias_gva.toml"
.set FIRST, 0x40000000
.set STRIDE, 0x40000000         # each under a page table of its own

.global start
start:
    mov rbx, FIRST
    mov ecx, 4
1:  mov [rbx], rbx
    mov rdx, FIRST
    mov r8d, 4
2:  cmp [rdx], rbx
    require_equal 1
    mov rax, STRIDE
    add rdx, rax
    dec r8d
    jnz 2b
    add rbx, rax
    dec ecx
    jnz 1b
    finish PASS
