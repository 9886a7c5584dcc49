# A read-only slot of large pages has large leaves that nobody can write through; the write comes out as MMIO.
# Pins down: rights and size of a leaf are decided apart (rule S1: read-only is not MMU-writable).
.include "guest.inc"
manifest "huge_read_only.toml"
.set LARGE, 0x40000000

.global start
start:
    mov eax, 0x80000000         # the same memory, where it can be written
    mov rcx, LARGE
    mov [rax], rcx
    mov ebx, LARGE
    cmp [rbx], rcx
    require_equal 1
    mov dword ptr [rbx], 5
    cmp [rbx], rcx
    require_equal 2
    finish PASS
