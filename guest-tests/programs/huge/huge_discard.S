# One page of 4 KiB in the middle of a large one is given back: it is zero, all others keep their bytes, and what maps them are
# small pages.
# Pins down: the host splits its page, and the leaf goes with it (rules L3, N1).
.include "guest.inc"
manifest "huge_discard.toml"
.set LARGE, 0x40000000

.global start
start:
    mov edi, LARGE
    mov ecx, 512
1:  mov [rdi], rdi
    add rdi, PAGE
    dec ecx
    jnz 1b
    ring 1
    mov ebx, LARGE + 0x100000
    cmp qword ptr [rbx], 0
    require_equal 1
    mov [rbx], rbx
    require_pages 2, LARGE, 512
    finish PASS
