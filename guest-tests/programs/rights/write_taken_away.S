# Copy on write: a page becomes read-only with INVLPG, the next write faults, and the handler gives it a copy. 16 pages, each
# written by both who share it; nobody sees the other's.
# Pins down: after INVLPG a right that is gone is gone (SDM vol. 3A, 4.10.4.2).
.include "guest.inc"
manifest "write_taken_away.toml"
.set WINDOW, 0x40000000
.set MEMORY, 0x400000
.set COPIES, 0x500000

.global start
start:
    write_pages WINDOW, 16
    mov edi, WINDOW
    call find_entry
    mov r12, rax
    mov ebx, WINDOW
    mov r13d, 16
1:  and qword ptr [r12], ~ENTRY_WRITABLE
    at_ring0 flush
    inc qword ptr [rbx]
    add rbx, PAGE
    add r12, 8
    dec r13d
    jnz 1b
    cmp r14d, 16
    require_equal 1
    require_pages 2, WINDOW, 16, 1
    require_pages 3, MEMORY, 16, WINDOW-MEMORY
    finish PASS

flush:
    invlpg [rbx]
    ret

# R12: the entry of the page at RBX.
.global copy
copy:
    push rax
    mov rax, [rbx]
    mov [rbx - WINDOW + COPIES], rax
    lea rax, [rbx - WINDOW + COPIES + ENTRY_ALL]
    mov [r12], rax
    invlpg [rbx]
    inc r14
    pop rax
    add rsp, 8
    iretq

ring0_gate
table_window
