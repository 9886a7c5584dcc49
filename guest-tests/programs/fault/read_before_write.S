# Reads each page before it is written: fresh memory is zero, and the page that was read is the page that
# the write reaches.
# Pins down: the page behind a read fault is the slot's own, and zero; a write finds the same (fault path, step 6).
.include "guest.inc"
manifest "read_before_write.toml"

.global start
start:
    lea rsi, [rip + buffer]
    mov ecx, 32
1:  cmp qword ptr [rsi], 0
    require_equal 1
    add rsi, PAGE
    dec ecx
    jnz 1b

    lea rdi, [rip + buffer]
    mov ecx, 32
2:  mov [rdi], rdi
    cmp [rdi], rdi
    require_equal 2
    add rdi, PAGE
    dec ecx
    jnz 2b
    finish PASS

.bss
.balign PAGE
.global buffer
buffer: .skip 32 * PAGE
