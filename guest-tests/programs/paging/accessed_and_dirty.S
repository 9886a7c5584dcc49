# A read sets the accessed flag of the entry, a write sets dirty, too; neither is set before (SDM 4.8). The guest looks at
# its own entries.
.include "guest.inc"
manifest "accessed_and_dirty.toml"
.set HERE, 0x40000000
.set FLAGS, ENTRY_ACCESSED + ENTRY_DIRTY
.macro require_flags code, flags
    mov edx, [r12]
    and edx, FLAGS
    cmp edx, \flags
    require_equal \code
.endm

.global start
start:
    mov ebx, HERE
    mov rdi, rbx
    call find_entry
    mov r12, rax
    mov r13d, 8
1:  and qword ptr [r12], ~FLAGS
    at_ring0 flush
    require_flags 1, 0
    mov rax, [rbx]
    require_flags 2, ENTRY_ACCESSED
    mov rax, [rbx + 8]
    require_flags 3, ENTRY_ACCESSED
    mov [rbx], rbx
    require_flags 4, FLAGS
    dec r13d
    jnz 1b
    finish PASS

flush:
    invlpg [rbx]
    ret

ring0_gate
table_window
