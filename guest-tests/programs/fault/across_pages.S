# Eight bytes over the end of a page: one access, two pages, both mapped. Writes and reads, 15 pairs.
# Pins down: an access is translated page by page, and none of it is done before all of it may be.
.include "guest.inc"
manifest "across_pages.toml"
.global start
start:
    mov rdi, offset buffer + PAGE - 4
    mov rbx, 0x1122334455667788
    mov ecx, 15
1:  mov [rdi], rbx
    cmp [rdi], rbx
    require_equal 1
    cmp dword ptr [rdi + 4], 0x11223344     # the second page's part
    require_equal 2
    add rdi, PAGE
    dec ecx
    jnz 1b
    finish PASS

.bss
.balign PAGE
.global buffer, second
.set second, buffer + PAGE
buffer: .skip 16 * PAGE
