# 16 entries change at once, and a load of CR3 makes all of them count: no INVLPG for each.
# Pins down: a load of CR3 drops all translations but global ones (SDM vol. 3A, 4.10.4.1).
.include "guest.inc"
manifest "cr3_flushes.toml"
.set WINDOW, 0x40000000
.set NEW, 0x500000

.global start
start:
    write_pages WINDOW, 16      # through the old entries
    mov edi, WINDOW
    call find_entry
    mov ecx, 16
    mov edx, NEW + ENTRY_ALL
1:  mov [rax], rdx
    add rax, 8
    add edx, PAGE
    dec ecx
    jnz 1b
    at_ring0 load_cr3
    require_zero 1, WINDOW, 16
    write_pages WINDOW, 16
    require_pages 2, NEW, 16, WINDOW-NEW
    finish PASS

load_cr3:
    mov rcx, cr3
    mov cr3, rcx
    ret

ring0_gate
table_window
