# A 2 MiB page of the guest's own: its first, a middle and its last 4 KiB lie in one guest entry.
# Pins down: a leaf at level 2 of the guest's tables (rule L4).
.include "guest.inc"
manifest "huge_page.toml"
.set HUGE, 0x40000000

.global start
start:
    mov edi, HUGE
    mov [rdi], rdi
    lea rsi, [rdi + 0x100000]
    mov [rsi], rsi
    lea rsi, [rdi + 0x1ff000]
    mov [rsi], rsi
    # The same memory by its identity-mapped address.
    mov edx, 0x400000
    cmp [rdx], rdi
    require_equal 1
    cmp [rdx + 0x1ff000], rsi
    require_equal 2
    finish PASS
