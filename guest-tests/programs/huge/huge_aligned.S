# Guest page, slot and host page all of 2 MiB and aligned: one leaf of 2 MiB for each (rules L1 to L4
# agree).
.include "guest.inc"
manifest "huge_aligned.toml"
.set LARGE, 0x40000000

.global start
start:
    mov edi, LARGE
    mov ecx, 4
1:  mov [rdi], rdi              # one page in each 2 MiB
    cmp [rdi], rdi
    require_equal 1
    add rdi, 0x200000
    dec ecx
    jnz 1b
    finish PASS
