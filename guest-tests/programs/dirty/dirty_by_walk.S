# A processor that sets the accessed flag in a page table writes to that page: it is in the log, though no instruction of the
# guest wrote to it. The table is the guest's own, in memory that is logged. (NPT, and EPT with accessed flags, take any walk
# for a write; a shadow only one that sets a flag.)
# Pins down: KVM marks the table that it, or the processor, updates (rule A2 of EPT, N2 of NPT).
.include "guest.inc"
manifest "dirty_by_walk.toml"
.set LOG, 0x4000000
.set TABLE, LOG + 3 * PAGE
.set HERE, 0x8000000000

.global start
start:
    mov rdi, HERE
    call find_entry_above
    mov qword ptr [TABLE], 0x400000 + ENTRY_ALL
    mov qword ptr [rax], TABLE + ENTRY_ALL
    at_ring0 load_cr3
    ring 1                      # the log begins
    mov rbx, HERE
    mov rax, [rbx]              # accessed
    ring 2
    mov [rbx], rbx              # dirty
    ring 2
    test qword ptr [TABLE], ENTRY_DIRTY
    jnz 1f
    finish 1
1:  finish PASS

load_cr3:
    mov rcx, cr3
    mov cr3, rcx
    ret

ring0_gate
table_window
