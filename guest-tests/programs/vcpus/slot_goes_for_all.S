# Memory is removed while four processors use it: all of them find a hole from then on, and when it is back, what they left.
# Pins down: no processor uses a slot that was deleted (rules Z2, Z3).
.include "guest.inc"
manifest "slot_goes_for_all.toml"
.set CPUS, 4
.set BANK, 0x4000000

.global start
start:
    mov ebx, BANK
    shl edi, 3
    add ebx, edi                # a word for each
    mov [rbx], rbx
    lock inc dword ptr [rip + ready]
1:  pause
    cmp dword ptr [rip + ready], CPUS
    jne 1b
    test edi, edi
    jnz 2f
    ring 1
    mov dword ptr [rip + gone], 1
2:  pause
    cmp dword ptr [rip + gone], 1
    jne 2b
    cmp qword ptr [rbx], -1
    require_equal 1
    lock inc dword ptr [rip + seen]
3:  pause
    cmp dword ptr [rip + seen], CPUS
    jne 3b
    test edi, edi
    jnz 4f
    ring 2
    mov dword ptr [rip + gone], 2
4:  pause
    cmp dword ptr [rip + gone], 2
    jne 4b
    cmp [rbx], rbx
    require_equal 2
    lock inc dword ptr [rip + done]
5:  pause
    test edi, edi
    jnz 5b
    cmp dword ptr [rip + done], CPUS
    jne 5b
    finish PASS

.data
ready: .long 0
gone: .long 0
seen: .long 0
done: .long 0
