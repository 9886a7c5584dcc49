# What all levels allow together: an entry above that is read-only, for ring 0 alone or no-execute takes that from every page
# below, whatever their own entries say.
# Pins down: rule I4: AND of W and U, OR of NX over all levels.
.include "guest.inc"
manifest "rights_of_levels.toml"
.set HERE, 0x40000000
.set NO_EXECUTE, 63

.global start
start:
    mov ebx, HERE
    mov rdi, rbx
    mov byte ptr [rbx], 0xc3
    call find_entry_above
    mov r12, rax
    mov r13, [r12]

    mov rcx, r13
    and rcx, ~ENTRY_WRITABLE
    mov [r12], rcx
    at_ring0 load_cr3
    require_fault 1, FAULT_PRESENT + FAULT_WRITE + FAULT_USER, mov [rbx], rbx

    mov rcx, r13
    and rcx, ~ENTRY_USER
    mov [r12], rcx
    at_ring0 load_cr3
    require_fault 2, FAULT_PRESENT + FAULT_USER, mov rcx, [rbx]

    mov rcx, r13
    bts rcx, NO_EXECUTE
    mov [r12], rcx
    at_ring0 load_cr3
    require_fault 3, FAULT_PRESENT + FAULT_USER + FAULT_FETCH, jmp rbx

    mov [r12], r13
    at_ring0 load_cr3
    require_no_fault 4, mov [rbx + 8], rbx
    call rbx
    finish PASS

load_cr3:
    mov rcx, cr3
    mov cr3, rcx
    ret

ring0_gate
catch_faults
table_window
