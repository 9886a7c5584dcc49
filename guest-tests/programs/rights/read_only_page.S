# A write to a page that the guest's entry makes read-only faults: present, write, user. Nothing is written, reads go on.
# Pins down: rule I4 of paging; the error code of SDM vol. 3A, figure 4-12.
.include "guest.inc"
manifest "read_only_page.toml"
.set HERE, 0x40000000

.global start
start:
    mov ebx, HERE
    mov rcx, [rbx]
    mov r12d, 4
1:  require_fault 1, FAULT_PRESENT + FAULT_WRITE + FAULT_USER, mov [rbx], rbx
    cmp [rip + fault_address], rbx
    require_equal 2
    require_fault 3, FAULT_PRESENT + FAULT_WRITE + FAULT_USER, lock inc qword ptr [rbx + 8]
    require_no_fault 4, cmp qword ptr [rbx], 0
    cmp qword ptr [rbx], 0
    require_equal 5
    dec r12d
    jnz 1b
    finish PASS

catch_faults
