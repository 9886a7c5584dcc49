# Writes each page of a buffer once, its own address into it: 64 first touches, and as many faults.
# Pins down: a page faults once, and its leaf is the frame behind the slot (KVM's fault path, steps 5 to 8).
.include "guest.inc"
manifest "first_touch.toml"

.global start
start:
    lea rdi, [rip + buffer]
    mov ecx, 64
1:  mov [rdi], rdi
    add rdi, PAGE
    dec ecx
    jnz 1b
    finish PASS

.bss
.balign PAGE
.global buffer
buffer: .skip 64 * PAGE
