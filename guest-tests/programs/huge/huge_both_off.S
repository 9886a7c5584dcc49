# Guest-physical and host-virtual address begin 4 KiB into a large page alike: the first has small pages, the others are large
# (rule L2: the slot's first huge frame is not whole).
.include "guest.inc"
manifest "huge_both_off.toml"
.set LARGE, 0x40000000

.global start
start:
    mov edi, LARGE + PAGE
    mov ecx, 4
1:  mov [rdi], rdi              # one page in each 2 MiB
    cmp [rdi], rdi
    require_equal 1
    add rdi, 0x200000
    dec ecx
    jnz 1b
    finish PASS
