# Two regions at one place: the one with the higher priority is seen. It changes while the guest runs, and each write goes
# where the guest sees it go.
# Pins down: a change of priority is one transaction (rules R9, R20).
.include "guest.inc"
manifest "priority_changes.toml"
.set HERE, 0x4000000
.set ALL_OF_ONE, 0x5000000
.set ALL_OF_OTHER, 0x6000000

.global start
start:
    mov ebx, HERE
    mov qword ptr [rbx], 1
    ring 1
    cmp qword ptr [rbx], 0
    require_equal 1
    mov qword ptr [rbx], 2
    ring 2
    cmp qword ptr [rbx], 1
    require_equal 2
    mov eax, ALL_OF_ONE
    cmp qword ptr [rax], 1
    require_equal 3
    mov eax, ALL_OF_OTHER
    cmp qword ptr [rax], 2
    require_equal 4
    finish PASS
