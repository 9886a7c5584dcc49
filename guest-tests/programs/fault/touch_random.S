# Writes 256 pages in a random order (each once: the steps of a full-period generator), then finds them all. A page faults
# once, in whatever order: no more second-level faults than pages and tables (rule H4).
.include "guest.inc"
manifest "touch_random.toml"
.set PAGES, 256

.global start
start:
    ring 1
    xor ebx, ebx
    mov ecx, PAGES
1:  imul ebx, ebx, 77           # a full period modulo 256: odd step, multiplier 1 modulo 4
    add ebx, 55
    and ebx, PAGES - 1
    mov edi, ebx
    shl edi, 12
    add rdi, offset buffer
    mov [rdi], rdi
    dec ecx
    jnz 1b
    ring 2
    require_pages 1, buffer, PAGES
    finish PASS

.bss
.balign PAGE
.global buffer
buffer: .skip PAGES * PAGE
