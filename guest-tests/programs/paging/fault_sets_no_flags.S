# A write that a read-only entry refuses leaves the dirty flag clear; one that is not present gets no flag at all.
# Pins down: D stays as it was on a walk that faults (rule F4).
.include "guest.inc"
manifest "fault_sets_no_flags.toml"
.set HERE, 0x40000000

.global start
start:
    mov ebx, HERE
    mov rdi, rbx
    call find_entry
    mov r12, rax
    require_fault 1, FAULT_PRESENT + FAULT_WRITE + FAULT_USER, mov [rbx], rbx
    test qword ptr [r12], ENTRY_DIRTY
    require_equal 2
    mov qword ptr [r12], 0
    at_ring0 flush
    require_fault 3, FAULT_USER, mov rcx, [rbx]
    cmp qword ptr [r12], 0
    require_equal 4
    finish PASS

flush:
    invlpg [rbx]
    ret

ring0_gate
catch_faults
table_window
