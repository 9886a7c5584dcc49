# CR4.SMAP: ring 0 faults at data of ring 3 (present), unless EFLAGS.AC allows it.
# Pins down: rule I6: a supervisor access to a user page faults, unless AC allows it.
.include "guest.inc"
manifest "smap.toml"
.set USER, 0x400000
.set SMAP, 21

.global start
start:
    mov ebx, USER
    mov [rbx], rbx
    at_ring0 with_smap
    cmp r13d, FAULT_PRESENT
    require_equal 1
    cmp r14, rbx
    require_equal 2
    finish PASS

# R13: the error code of a read; R14: what is read with AC.
.section .kernel, "ax", @progbits
with_smap:
    mov rcx, cr4
    bts rcx, SMAP
    mov cr4, rcx
    lea r12, [rip + 1f]
    mov rdx, [rbx]
1:  stac
    mov r14, [rbx]
    clac
    btr rcx, SMAP
    mov cr4, rcx
    ret

.global refused
refused:
    pop r13
    mov [rsp], r12
    iretq

ring0_gate
