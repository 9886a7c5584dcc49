# A read-only page becomes writable, without INVLPG: the fault itself makes the processor forget (SDM 4.10.4.3), so the
# handler's change counts when the instruction is run again. 16 pages, each one fault.
.include "guest.inc"
manifest "write_made_allowed.toml"
.set WINDOW, 0x40000000

.global start
start:
    mov edi, WINDOW
    call find_entry
    mov r12, rax
    mov ebx, WINDOW
    mov r13d, 16
1:  mov rcx, [rbx]              # the processor may remember it as read-only
    mov [rbx], rbx
    cmp [rbx], rbx
    require_equal 1
    add rbx, PAGE
    dec r13d
    jnz 1b
    cmp r14d, 16
    require_equal 2
    finish PASS

# R12: the entry of the next page; R14: how many faults there were.
.global make_writable
make_writable:
    or qword ptr [r12], ENTRY_WRITABLE
    add r12, 8
    inc r14
    add rsp, 8
    iretq

table_window
