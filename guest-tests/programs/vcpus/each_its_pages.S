# Four processors, each of which writes every fourth page: all pages are there in the end, each by the one that wrote it.
# Pins down: tables are shared by all processors of a VM (rule K1 of the MMU).
.include "guest.inc"
manifest "each_its_pages.toml"
.set CPUS, 4
.set PAGES, 64

.global start
start:
    mov ebx, edi                # its number
    mov rsi, offset buffer
    mov eax, edi
    shl eax, 12
    add rsi, rax
    mov ecx, PAGES / CPUS
1:  mov [rsi], rsi
    mov [rsi + 8], rbx
    add rsi, CPUS * PAGE
    dec ecx
    jnz 1b
    lock inc dword ptr [rip + done]
    test ebx, ebx
    jz 2f
sleep:
    pause
    jmp sleep

2:  pause
    cmp dword ptr [rip + done], CPUS
    jne 2b
    require_pages 1, buffer, PAGES
    mov rsi, offset buffer
    xor ecx, ecx
3:  mov eax, ecx
    and eax, CPUS - 1
    cmp [rsi + 8], rax
    require_equal 2
    add rsi, PAGE
    inc ecx
    cmp ecx, PAGES
    jne 3b
    finish PASS

.data
done: .long 0

.bss
.balign PAGE
.global buffer
buffer: .skip PAGES * PAGE
