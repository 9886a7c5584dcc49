# An entry of the root that leads to the root itself: all page tables appear at a fixed place of the address space. The guest
# reads an entry there, changes it there, and the change counts.
# Pins down: a table at every level at once; a shadow has a page for each use of it (rule K2).
.include "guest.inc"
manifest "recursive_map.toml"
.set SLOT, 0x1f0 >> 1           # a root entry that is free: 248
.set HERE, 0x40000000
.set BASE, SLOT << 39           # where the entry of page n is: BASE + n * 8

.global start
start:
    mov rax, ROOT + ENTRY_ALL
    mov [TABLES + ROOT + SLOT * 8], rax
    at_ring0 load_cr3
    mov rbx, BASE + (HERE >> 12) * 8
    mov rax, [rbx]
    and eax, 0xfffff000
    cmp eax, 0x400000
    require_equal 1
    mov qword ptr [rbx], 0x401000 + ENTRY_ALL
    at_ring0 load_cr3
    mov eax, HERE
    mov [rax], rax
    cmp [0x401000], rax
    require_equal 2
    finish PASS

load_cr3:
    mov rcx, cr3
    mov cr3, rcx
    ret

ring0_gate
