# One processor changes an entry that another may remember, and tells it; the other invalidates it and answers: from then on it
# sees the new page. What every kernel does, and calls a shootdown.
# Pins down: INVLPG is of one processor alone (SDM vol. 3A, 4.10.5).
.include "guest.inc"
manifest "shootdown.toml"
.set HERE, 0x40000000
.set ONE, 0x400000
.set OTHER, 0x401000
.set ROUNDS, 6

.macro wait_for turn
77: pause
    cmp dword ptr [rip + now], \turn
    jne 77b
.endm

.global start
start:
    mov ebx, HERE
    test edi, edi
    jnz other
    mov qword ptr [ONE], 1
    mov qword ptr [OTHER], 2
    mov rdi, rbx
    call find_entry
    mov r12, rax
    mov r13d, ROUNDS
1:  mov qword ptr [r12], ONE + ENTRY_ALL
    mov dword ptr [rip + now], 1
    wait_for 2
    mov qword ptr [r12], OTHER + ENTRY_ALL
    mov dword ptr [rip + now], 3
    wait_for 4
    dec r13d
    jnz 1b
    finish PASS

other:
    wait_for 1
    invlpg [rbx]
    cmp qword ptr [rbx], 1
    require_equal 1
    mov dword ptr [rip + now], 2
    wait_for 3
    invlpg [rbx]
    cmp qword ptr [rbx], 2
    require_equal 2
    mov dword ptr [rip + now], 4
    jmp other

table_window

.data
now: .long 0
