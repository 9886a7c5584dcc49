# A fetch from a page with NX faults: present, user, fetch. Data accesses to the same page do not.
# Pins down: rule F2: I in the error code, if EFER.NX is on.
.include "guest.inc"
manifest "no_execute_page.toml"
.set HERE, 0x40000000

.global start
start:
    mov ebx, HERE
    mov byte ptr [rbx], 0xc3    # RET
    require_fault 1, FAULT_PRESENT + FAULT_USER + FAULT_FETCH, jmp rbx
    cmp [rip + fault_address], rbx
    require_equal 2
    require_no_fault 3, mov byte ptr [rbx + 1], 0xc3
    mov eax, 0x400000           # the same byte, where it may be run
    call rax
    finish PASS

catch_faults
