# One RAM block at two guest-physical places: what is written through one is read through the other.
# Pins down: slots of one host range (rule K1), of an alias (rule R3).
.include "guest.inc"
manifest "alias_gpa.toml"
.set LOW, 0x600000
.set MIRROR, 0x4000000

.global start
start:
    mov edi, LOW
    mov esi, MIRROR
    mov ecx, 16
1:  mov [rdi], rsi
    cmp [rsi], rsi
    require_equal 1
    mov [rsi + 8], rdi
    cmp [rdi + 8], rdi
    require_equal 2
    add rdi, PAGE
    add rsi, PAGE
    dec ecx
    jnz 1b
    finish PASS
