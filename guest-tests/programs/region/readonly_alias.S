# The same RAM, and a read-only alias of it: what is written through one is seen through the other, at once. A write through
# the alias comes out as MMIO and changes nothing.
# Pins down: read-only comes down an alias (rule R13), and is a flag of its slot.
.include "guest.inc"
manifest "readonly_alias.toml"
.set RAM, 0x600000
.set ALIAS, 0x4000000

.global start
start:
    write_pages RAM, 4
    require_pages 1, ALIAS, 4, (RAM-ALIAS)
    mov ebx, ALIAS
    mov word ptr [rbx], 0x1234
    mov eax, RAM
    cmp [rax], rax
    require_equal 2
    mov [rax], rbx
    cmp [rbx], rbx
    require_equal 3
    finish PASS
