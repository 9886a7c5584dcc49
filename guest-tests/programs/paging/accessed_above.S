# An access sets the accessed flag in the entries of all levels above, and dirty in none of them.
# Pins down: SDM vol. 3A, 4.8.
.include "guest.inc"
manifest "accessed_above.toml"
.set HERE, 0x8000000000
.set FLAGS, ENTRY_ACCESSED + ENTRY_DIRTY

.global start
start:
    mov rbx, HERE
    mov [rbx], rbx
    mov r10, 0x000ffffffffff000
    mov eax, ROOT
    mov ecx, 39
1:  mov rdx, rbx
    shr rdx, cl
    and edx, 0x1ff
    mov rax, [rax + rdx * 8 + TABLES]
    mov edx, eax
    and edx, FLAGS
    cmp edx, ENTRY_ACCESSED
    require_equal 1
    and rax, r10
    sub ecx, 9
    cmp ecx, 12
    jne 1b
    mov eax, [rax + TABLES]     # the last one, of the first page of its table
    and eax, FLAGS
    cmp eax, FLAGS
    require_equal 2
    finish PASS
