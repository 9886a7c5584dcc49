# One page in every 2 MiB and one page on: each touch needs another page table, in the guest and below it.
# Pins down: tables are made at every level as they are needed, in the guest's order (fault path, step 8).
.include "guest.inc"
manifest "strided_sweep.toml"
.set STRIDE, 0x201000
.set FIRST, 0x400000

.global start
start:
    mov edi, FIRST
    mov ecx, 24
1:  mov [rdi], rdi
    add rdi, STRIDE
    dec ecx
    jnz 1b

    mov esi, FIRST
    mov ecx, 24
2:  cmp [rsi], rsi
    require_equal 1
    add rsi, STRIDE
    dec ecx
    jnz 2b
    finish PASS
