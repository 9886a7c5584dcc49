# An alias is a window on a larger region that the host moves along: bank switching. The guest sees eight banks in turn at one
# place, and what it writes is in the bank that was there.
# Pins down: an alias may begin elsewhere in its target (rule R3); its slot is deleted and made again.
.include "guest.inc"
manifest "alias_shifts.toml"
.set WINDOW, 0x5000000
.set BANKS, 0x4000000

.global start
start:
    mov ebx, WINDOW
    mov qword ptr [rbx], 1
    ring 1
    cmp qword ptr [rbx], 0
    require_equal 1
    mov qword ptr [rbx], 2
    ring 2
    mov qword ptr [rbx], 3
    ring 0
    cmp qword ptr [rbx], 1
    require_equal 2
    mov eax, BANKS
    cmp qword ptr [rax], 1
    require_equal 3
    cmp qword ptr [rax + 4 * PAGE], 2
    require_equal 4
    cmp qword ptr [rax + 12 * PAGE], 3
    require_equal 5
    finish PASS
