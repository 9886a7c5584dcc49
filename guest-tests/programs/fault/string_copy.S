# One REP MOVSB over eight fresh pages into eight others: it faults in the middle, and goes on where it was.
# Pins down: a REP instruction that faults is taken up where it was (SDM vol. 2B, REP).
.include "guest.inc"
manifest "string_copy.toml"
.set BYTES, 8 * PAGE

.global start
start:
    write_pages from, 8
    mov rsi, offset from
    mov rdi, offset to
    mov ecx, BYTES - 8          # from 8 bytes behind the start, so that no page fits another
    add rdi, 8
    rep movsb
    mov rdx, offset to + BYTES
    cmp rdi, rdx
    require_equal 1
    mov rsi, offset from
    mov rdi, offset to + 8
    mov ecx, 8
2:  cmp [rdi], rsi
    require_equal 2
    add rsi, PAGE
    add rdi, PAGE
    dec ecx
    jnz 2b
    finish PASS

.bss
.balign PAGE
.global from, to
from: .skip BYTES
to: .skip BYTES
