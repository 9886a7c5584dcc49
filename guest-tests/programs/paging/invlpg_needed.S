# The guest changes an entry that its processor may remember, and says so by INVLPG: from then on the other page is seen,
# for reads and for writes (a shadow may be stale until that, rule H1, and no longer).
.include "guest.inc"
manifest "invlpg_needed.toml"
.set HERE, 0x40000000
.set ONE, 0x400000
.set OTHER, 0x401000

.global start
start:
    mov qword ptr [ONE], 1
    mov qword ptr [OTHER], 2
    mov ebx, HERE
    mov rdi, rbx
    call find_entry
    mov r12, rax
    mov r13d, 16
1:  mov qword ptr [r12], ONE + ENTRY_ALL
    at_ring0 flush
    cmp qword ptr [rbx], 1
    require_equal 1
    mov qword ptr [r12], OTHER + ENTRY_ALL
    at_ring0 flush
    cmp qword ptr [rbx], 2
    require_equal 2
    dec r13d
    jnz 1b
    mov [rbx], rbx
    cmp [OTHER], rbx
    require_equal 3
    cmp qword ptr [ONE], 1
    require_equal 4
    finish PASS

flush:
    invlpg [rbx]
    ret

ring0_gate
table_window
