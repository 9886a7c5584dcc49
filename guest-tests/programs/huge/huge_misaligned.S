# Guest-physical and host-virtual addresses differ by 4 KiB modulo 2 MiB: no large page fits anywhere in the slot (rule L2).
.include "guest.inc"
manifest "huge_misaligned.toml"
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
    finish PASS
