# A page for ring 0 alone: ring 3 faults with present and user, whatever it does; ring 0 reads and writes it.
# Pins down: rule I4: U at all levels.
.include "guest.inc"
manifest "supervisor_page.toml"
.set HERE, 0x40000000

.global start
start:
    mov ebx, HERE
    at_ring0 touch
    require_fault 1, FAULT_PRESENT + FAULT_USER, mov rcx, [rbx]
    require_fault 2, FAULT_PRESENT + FAULT_USER + FAULT_WRITE, mov [rbx], rcx
    xor ecx, ecx
    at_ring0 look
    cmp rcx, rbx
    require_equal 3
    cmp [0x400000], rbx         # the same memory, where ring 3 may be
    require_equal 4
    finish PASS

touch:
    mov [rbx], rbx
    ret
look:
    mov rcx, [rbx]
    ret

ring0_gate
catch_faults
