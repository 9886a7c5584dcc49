# A page that was a page table becomes data: the guest unlinks it, then writes all of it. A shadow MMU that still took it
# for a table would see 512 writes to entries (rule H2, flooding); and as a table again it counts at once.
.include "guest.inc"
manifest "table_becomes_data.toml"
.set HERE, 0x8000000000

.global start
start:
    mov rdi, HERE
    call find_entry_above
    mov r12, rax
    mov r13, offset table
    mov r14, [r12]              # the boot's own table
    mov rbx, HERE
    mov r15d, 4
1:  mov qword ptr [r13], 0x400000 + ENTRY_ALL
    lea rax, [r13 + ENTRY_ALL]
    mov [r12], rax
    at_ring0 load_cr3
    mov [rbx], rbx
    cmp [0x400000], rbx
    require_equal 1

    mov [r12], r14
    at_ring0 load_cr3
    mov rdi, r13                # data, that would be bad entries
    mov ecx, 512
    mov rax, -1
    rep stosq
    cmp qword ptr [rbx], 0
    require_equal 2
    mov rsi, r13
    mov ecx, 512
2:  cmp qword ptr [rsi], -1
    require_equal 3
    add rsi, 8
    dec ecx
    jnz 2b
    mov rdi, r13                # and a clean table again
    mov ecx, 512
    xor eax, eax
    rep stosq
    dec r15d
    jnz 1b
    finish PASS

load_cr3:
    mov rcx, cr3
    mov cr3, rcx
    ret

ring0_gate
table_window

.bss
.balign PAGE
.global table
table: .skip PAGE
