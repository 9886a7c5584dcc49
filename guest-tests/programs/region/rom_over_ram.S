# ROM lies over RAM: reads see the ROM, writes go nowhere, and the RAM below keeps what it has. Beside the ROM it is RAM.
# Pins down: a write to ROM changes nothing (rule R6), nor what it hides (rule R15).
.include "guest.inc"
manifest "rom_over_ram.toml"
.set HERE, 0x4000000
.set ROM, 0x4002000
.set BELOW, 0x5000000           # all of the RAM once more

.global start
start:
    mov eax, BELOW
    mov qword ptr [rax + 2 * PAGE], 0x77
    mov ebx, ROM
    cmp qword ptr [rbx], 0
    require_equal 1
    mov byte ptr [rbx], 0x55
    cmp qword ptr [rbx], 0
    require_equal 2
    cmp qword ptr [rax + 2 * PAGE], 0x77
    require_equal 3
    mov [rbx - 8], rbx          # the last word before it, and the first behind it
    mov [rbx + PAGE], rbx
    cmp [rax + 2 * PAGE - 8], rbx
    require_equal 4
    cmp [rax + 3 * PAGE], rbx
    require_equal 5
    finish PASS
