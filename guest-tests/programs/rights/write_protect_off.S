# CR0.WP: with it ring 0 faults at a read-only page, without it ring 0 writes there, and ring 3 still faults (rule H3: a
# shadow entry of such a page flips between the two).
.include "guest.inc"
manifest "write_protect_off.toml"
.set HERE, 0x40000000
.set WP, 16

.global start
start:
    mov ebx, HERE
    mov r12d, 4
1:  mov rcx, [rbx]
    at_ring0 with_wp
    cmp dword ptr [rip + fault_error], FAULT_PRESENT + FAULT_WRITE
    require_equal 1
    at_ring0 without_wp
    cmp [rbx], r12
    require_equal 2
    require_fault 3, FAULT_PRESENT + FAULT_WRITE + FAULT_USER, mov [rbx], rbx
    dec r12d
    jnz 1b
    finish PASS

with_wp:
    lea rax, [rip + 2f]
    mov [rip + fault_resume], rax
    mov [rbx], rbx
2:  ret

without_wp:
    mov rcx, cr0
    btr rcx, WP
    mov cr0, rcx
    mov [rbx], r12
    bts rcx, WP
    mov cr0, rcx
    ret

ring0_gate
catch_faults
