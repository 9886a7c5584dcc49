# An entry that becomes present needs no INVLPG: a processor remembers no entry that is not (SDM 4.10.2.3). 16 pages, each
# tried before and after.
.include "guest.inc"
manifest "entry_made_present.toml"
.set WINDOW, 0x40000000
.set FRAMES, 0x400000

.global start
start:
    mov edi, WINDOW
    call find_entry
    mov r12, rax
    mov ebx, WINDOW
    mov r13d, FRAMES + ENTRY_ALL
    mov r14d, 16
1:  mov qword ptr [r12], 0
    at_ring0 flush
    require_fault 1, FAULT_USER + FAULT_WRITE, mov [rbx], rbx
    cmp [rip + fault_address], rbx
    require_equal 2
    mov [r12], r13
    require_no_fault 3, mov [rbx], rbx
    add rbx, PAGE
    add r12, 8
    add r13, PAGE
    dec r14d
    jnz 1b
    require_pages 4, FRAMES, 16, WINDOW-FRAMES
    finish PASS

flush:
    invlpg [rbx]
    ret

ring0_gate
catch_faults
table_window
