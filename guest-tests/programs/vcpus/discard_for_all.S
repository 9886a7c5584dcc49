# A page that two processors use is given back: neither finds what it held, though only one of them rang. Then they share a new
# page, with what each writes to it.
# Pins down: an invalidation flushes all processors before the page is gone (rule N1).
.include "guest.inc"
manifest "discard_for_all.toml"
.set CPUS, 2

.macro wait_for turn
77: pause
    cmp dword ptr [rip + now], \turn
    jne 77b
.endm

.global start
start:
    mov rsi, offset buffer
    test edi, edi
    jnz other
    mov qword ptr [rsi], 1
    mov dword ptr [rip + now], 1
    wait_for 2                  # the other has it, too
    ring 1
    mov dword ptr [rip + now], 3
    wait_for 4
    cmp qword ptr [rsi], 7
    require_equal 1
    finish PASS

other:
    wait_for 1
    cmp qword ptr [rsi], 1
    require_equal 2
    mov dword ptr [rip + now], 2
    wait_for 3
    cmp qword ptr [rsi], 0
    require_equal 3
    mov qword ptr [rsi], 7
    mov dword ptr [rip + now], 4
1:  pause
    jmp 1b

.data
now: .long 0

.bss
.balign PAGE
.global buffer
buffer: .skip PAGE
