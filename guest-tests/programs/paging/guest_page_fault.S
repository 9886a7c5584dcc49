# Pages that the guest's own tables do not map: its #PF handler walks them from CR3, fills the entry and
# goes on. The host sees nothing of it but the pages.
# Pins down: a fault that the guest's own tables cause is the guest's: a shadow MMU injects it (fault path, step 3).
.include "guest.inc"
manifest "guest_page_fault.toml"
.set LAZY, 0x800000
.set FAULT_WRITE_USER, 6        # error code: not present, write, user

.global start
start:
    mov edi, LAZY
    mov ecx, 8
1:  mov [rdi], rdi
    add rdi, PAGE
    dec ecx
    jnz 1b

    cmp dword ptr [rip + faults], 8
    require_equal 1
    cmp dword ptr [rip + strange], 0
    require_equal 2
    finish PASS

# At ring 0: [rsp] error code, [rsp + 8] RIP ...
.global on_page_fault
on_page_fault:
    push rax
    push rdx
    push rcx
    inc dword ptr [rip + faults]
    cmp dword ptr [rsp + 24], FAULT_WRITE_USER
    je 1f
    inc dword ptr [rip + strange]
1:  mov rax, cr3
    mov rdx, cr2
    mov ecx, 39
2:  push rdx                    # the index at this level: 9 bits from bit cl on
    shr rdx, cl
    and edx, 0x1ff
    lea rax, [rax + rdx * 8]    # the entry; tables are identity mapped
    pop rdx
    cmp ecx, 12
    je 3f
    mov rax, [rax]
    and rax, ~0xfff
    sub ecx, 9
    jmp 2b
3:  and rdx, ~0xfff             # map the page where it says it is: present, writable, user
    or edx, 7
    mov [rax], rdx
    pop rcx
    pop rdx
    pop rax
    add rsp, 8
    iretq

.data
faults: .long 0
strange: .long 0
