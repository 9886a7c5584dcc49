# The dirty log begins: large leaves become small ones, and one byte written is one page of 4 KiB in the log (rules L1, D1). When
# it ends, large pages come back (rule D2).
.include "guest.inc"
manifest "huge_logged.toml"
.set LARGE, 0x40000000

.global start
start:
    touch_large 1, LARGE, 4
    ring 1
    mov edi, LARGE + 0x3000
    mov byte ptr [rdi], 1
    ring 2
    ring 3
    mov edi, LARGE
    mov rax, [rdi]
    mov [rdi], rdi
    finish PASS
