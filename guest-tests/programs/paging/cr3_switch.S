# Two address spaces: a second root that differs in one page. The processor goes from one to the other 32 times, and each
# time sees its own page (KVM keeps three roots for that, rule K5).
.include "guest.inc"
manifest "cr3_switch.toml"
.set HERE, 0x8000000000         # a root entry of its own
.set ONE, 0x400000
.set OTHER, 0x401000
.set ROOT_ENTRY, HERE >> 39 << 3

.global start
start:
    mov qword ptr [ONE], 1
    mov qword ptr [OTHER], 2
    mov esi, TABLES + ROOT      # the other root: as the first, but for one entry
    mov rdi, offset tables
    mov ecx, 512
    rep movsq
    mov rdi, offset tables
    lea rax, [rdi + PAGE + ENTRY_ALL]
    mov [rdi + ROOT_ENTRY], rax
    add rax, PAGE
    mov [rdi + PAGE], rax
    add rax, PAGE
    mov [rdi + 2 * PAGE], rax
    mov qword ptr [rdi + 3 * PAGE], OTHER + ENTRY_ALL

    mov rbx, HERE
    mov r13d, 32
1:  cmp qword ptr [rbx], 1
    require_equal 1
    at_ring0 to_other
    cmp qword ptr [rbx], 2
    require_equal 2
    at_ring0 to_one
    dec r13d
    jnz 1b
    at_ring0 to_other
    mov [rbx], rbx
    finish PASS

to_other:
    mov rcx, offset tables
    mov cr3, rcx
    ret
to_one:
    mov ecx, ROOT
    mov cr3, rcx
    ret

ring0_gate

.bss
.balign PAGE
tables: .skip 4 * PAGE
