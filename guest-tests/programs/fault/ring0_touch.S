# The same first touch at ring 0, and a word on the console. Where KVM interprets ring 0 this is its
# emulator's work, not the second level's.
.include "guest.inc"
manifest "ring0_touch.toml"

.global start
start:
    mov rax, cr3
    test rax, rax               # privileged: faults anywhere but at ring 0
    lea rdi, [rip + buffer]
    mov ecx, 4
1:  mov [rdi], rdi
    add rdi, PAGE
    dec ecx
    jnz 1b

    lea rsi, [rip + greeting]
    mov ecx, offset greeting_length
    mov dx, PORT_CONSOLE
    rep outsb
    finish PASS

.data
greeting: .ascii "hello from ring 0\n"
.set greeting_length, . - greeting

.bss
.balign PAGE
.global buffer
buffer: .skip 4 * PAGE
