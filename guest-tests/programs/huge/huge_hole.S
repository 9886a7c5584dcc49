# A device page in the middle of a large page: the pages around it are small, as their slots end inside it; large ones go on
# beside them.
# Pins down: a large leaf lies in one slot (rule L2).
.include "guest.inc"
manifest "huge_hole.toml"
.set LARGE, 0x40000000

.global start
start:
    mov edi, LARGE
    mov ecx, 4
1:  mov [rdi], rdi              # one page in each 2 MiB
    cmp [rdi], rdi
    require_equal 1
    add rdi, 0x200000
    dec ecx
    jnz 1b
    mov edi, LARGE + 0x300000
    cmp dword ptr [rdi], 0x77
    require_equal 2
    finish PASS
