# Code at one address whose page becomes another: the entry changes, INVLPG, and the next call runs the other code.
# Pins down: a fetch uses no translation that INVLPG has dropped (SDM vol. 3A, 4.10.4.1).
.include "guest.inc"
manifest "self_modifying_map.toml"
.set HERE, 0x40000000
.set ONE, 0x400000
.set OTHER, 0x401000

.global start
start:
    mov rax, [rip + one]
    mov [ONE], rax
    mov rax, [rip + other]
    mov [OTHER], rax
    mov ebx, HERE
    mov rdi, rbx
    call find_entry
    mov r12, rax
    mov r13d, 8
1:  mov qword ptr [r12], ONE + ENTRY_ALL
    at_ring0 flush
    call rbx
    cmp eax, 1
    require_equal 1
    mov qword ptr [r12], OTHER + ENTRY_ALL
    at_ring0 flush
    call rbx
    cmp eax, 2
    require_equal 2
    dec r13d
    jnz 1b
    finish PASS

flush:
    invlpg [rbx]
    ret

.balign 8
one:
    mov eax, 1
    ret
    .skip 2
other:
    mov eax, 2
    ret
    .skip 2

ring0_gate
table_window
