# CR4.SMEP: ring 0 faults at a fetch from a page of ring 3: present, fetch. The routines of ring 0 lie in pages of their own.
# Pins down: rule I6: a supervisor fetch from a user page faults.
.include "guest.inc"
manifest "smep.toml"
.set USER, 0x400000
.set SMEP, 20

.global start
start:
    mov ebx, USER
    mov byte ptr [rbx], 0xc3    # RET
    at_ring0 call_user          # without SMEP it may
    cmp ecx, 1
    require_equal 1
    at_ring0 with_smep
    cmp dword ptr [rip + fault_error], FAULT_PRESENT + FAULT_FETCH
    require_equal 2
    cmp [rip + fault_address], rbx
    require_equal 3
    call rbx                    # ring 3 still may
    finish PASS

.section .kernel, "ax", @progbits
call_user:
    call rbx
    mov ecx, 1
    ret

with_smep:
    mov rcx, cr4
    bts rcx, SMEP
    mov cr4, rcx
    lea rax, [rip + 1f]
    mov [rip + fault_resume], rax
    jmp rbx
1:  mov rcx, cr4
    btr rcx, SMEP
    mov cr4, rcx
    ret

ring0_gate
catch_faults
