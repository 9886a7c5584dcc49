# One frame at 256 addresses: the guest writes the entries itself, loads CR3 and writes through each. A shadow MMU keeps
# a reverse map of 256 entries for that frame (rule H5), and all of them go when the host takes the page.
.include "guest.inc"
manifest "rmap_chain.toml"
.set WINDOW, 0x40000000
.set FRAME, 0x400000
.set COUNT, 256

.global start
start:
    mov edi, WINDOW
    call find_entry
    mov ecx, COUNT
    mov rdx, FRAME + ENTRY_ALL
1:  mov [rax], rdx
    add rax, 8
    dec ecx
    jnz 1b
    at_ring0 load_cr3

    mov edi, WINDOW
    mov ecx, COUNT
2:  inc qword ptr [rdi]
    add rdi, PAGE
    dec ecx
    jnz 2b
    cmp qword ptr [rdi - PAGE], COUNT
    require_equal 1
    ring 1
    cmp qword ptr [rdi - PAGE], 0
    require_equal 2
    finish PASS

load_cr3:
    mov rcx, cr3
    mov cr3, rcx
    ret

ring0_gate
table_window
