# The host has small pages only: so has the second level, whatever the guest maps (rule L3).
.include "guest.inc"
manifest "huge_host_small.toml"
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
