# A slot that ends 4 KiB short of a large page: its last pages are small, those before large (rule L2).
.include "guest.inc"
manifest "huge_short_tail.toml"
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
