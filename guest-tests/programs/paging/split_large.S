# A 2 MiB page becomes 512 small ones that lead to the same memory, and a large one again: what was written through one is
# read through the other (a change of the entry above the tables).
# Pins down: a change of a guest's upper entry zaps what was shadowed of it (rule H2).
.include "guest.inc"
manifest "split_large.toml"
.set LARGE, 0x40000000
.set MEMORY, 0x400000

.global start
start:
    mov edi, LARGE
    call find_entry_above
    mov r12, rax
    mov r13, [r12]
    mov rsi, offset table       # the same in small pages
    mov edx, MEMORY + ENTRY_ALL
    mov ecx, 512
1:  mov [rsi], rdx
    add rsi, 8
    add edx, PAGE
    dec ecx
    jnz 1b

    write_pages LARGE, 16
    mov rax, offset table + ENTRY_ALL
    mov [r12], rax
    at_ring0 load_cr3
    require_pages 1, LARGE, 16
    write_pages LARGE + 0x100000, 16
    mov [r12], r13
    at_ring0 load_cr3
    require_pages 2, LARGE, 16
    require_pages 3, LARGE + 0x100000, 16
    finish PASS

load_cr3:
    mov rcx, cr3
    mov cr3, rcx
    ret

ring0_gate
table_window

.bss
.balign PAGE
table: .skip PAGE
