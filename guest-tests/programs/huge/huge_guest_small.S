# The guest maps 4 KiB pages over memory of 2 MiB pages: the second level still has 2 MiB, a shadow what the guest has (rule L4).
.include "guest.inc"
manifest "huge_guest_small.toml"
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
