# The host's own mapping allows nothing: the guest's read leaves with EFAULT; once the host allows it again, the same read goes
# on as if nothing had been. Eight rounds of that, for a read, a write and a fetch.
# Pins down: KVM_RUN returns EFAULT and may be called again (fault path, step 6).
.include "guest.inc"
manifest "unreadable_backing.toml"
.set BANK, 0x4000000

.global start
start:
    mov ebx, BANK
    mov byte ptr [rbx + 8], 0xc3        # RET
    mov r12d, 8
1:  mov [rbx], r12
    ring 1
    cmp [rbx], r12
    require_equal 1
    ring 1
    inc qword ptr [rbx]
    ring 1
    lea rax, [rbx + 8]
    call rax
    lea rax, [r12 + 1]
    cmp [rbx], rax
    require_equal 2
    dec r12d
    jnz 1b
    finish PASS
