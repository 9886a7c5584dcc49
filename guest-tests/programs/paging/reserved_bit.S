# An entry of a 2 MiB page with bit 13 set: reserved, so an access faults with RSVD in its error code (SDM 4.7), and CR2 has
# the address. Without the bit it is as before.
.include "guest.inc"
manifest "reserved_bit.toml"
.set LARGE, 0x40000000
.set RESERVED, 1 << 13

.global start
start:
    mov ebx, LARGE + 0x123000
    mov [rbx], rbx
    mov rdi, rbx
    call find_entry_above
    mov r12, rax
    or qword ptr [r12], RESERVED
    at_ring0 flush
    require_fault 1, FAULT_PRESENT + FAULT_USER + FAULT_RESERVED, mov rcx, [rbx]
    cmp [rip + fault_address], rbx
    require_equal 2
    require_fault 3, FAULT_PRESENT + FAULT_USER + FAULT_RESERVED + FAULT_WRITE, mov [rbx], rbx
    and qword ptr [r12], ~RESERVED
    at_ring0 flush
    require_no_fault 4, cmp [rbx], rbx
    cmp [rbx], rbx
    require_equal 5
    finish PASS

flush:
    invlpg [rbx]
    ret

ring0_gate
catch_faults
table_window
