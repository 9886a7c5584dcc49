# A device writes to memory that the guest has mapped: the guest sees it at once, by either of the page's addresses.
# Pins down: host-virtual and guest-physical addresses reach one frame.
.include "guest.inc"
manifest "device_write.toml"
.set HERE, 0x600000
.set ALIAS, 0x4000000

.global start
start:
    mov ebx, HERE
    mov edi, ALIAS
    mov qword ptr [rbx + 8], 1
    cmp qword ptr [rdi + 8], 1
    require_equal 1
    ring 1
    mov rax, 0x1122334455667788
    cmp [rbx + 8], rax
    require_equal 2
    cmp [rdi + 8], rax
    require_equal 3
    cmp qword ptr [rbx], 0
    require_equal 4
    finish PASS
