# Protection keys: the key of a page lies in its entry, ring 3 sets by WRPKRU what each key allows. Access and write are
# refused with PK in the error code, and no entry changes.
# Pins down: rules I6, F3: data alone, user pages alone, PK in the error code.
.include "guest.inc"
manifest "protection_key.toml"
.set HERE, 0x40000000
.set KEY, 5
.set KEY_SHIFT, 59
.set PKE, 22

.macro allow bits               # of the key: 1 no access, 2 no write
    xor ecx, ecx
    xor edx, edx
    mov eax, \bits << (2 * KEY)
    wrpkru
.endm

.global start
start:
    at_ring0 turn_on
    mov ebx, HERE
    mov rdi, rbx
    call find_entry
    mov r12, rax
    mov rax, KEY << KEY_SHIFT
    or [r12], rax
    at_ring0 flush
    mov [rbx], rbx
    allow 2
    require_fault 1, FAULT_PRESENT + FAULT_WRITE + FAULT_USER + FAULT_KEY, mov [rbx], rcx
    require_no_fault 2, mov rcx, [rbx]
    allow 1
    require_fault 3, FAULT_PRESENT + FAULT_USER + FAULT_KEY, mov rcx, [rbx]
    allow 0
    require_no_fault 4, mov rcx, [rbx]
    cmp rcx, rbx
    require_equal 5
    finish PASS

turn_on:
    mov rcx, cr4
    bts rcx, PKE
    mov cr4, rcx
    ret
flush:
    invlpg [rbx]
    ret

ring0_gate
catch_faults
table_window
