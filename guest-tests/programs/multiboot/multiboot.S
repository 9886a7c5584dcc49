# A 32-bit program that boots by Multiboot 1: registers and information are as the specification has them, and the
# devices of a PC answer.
# Pins down: Multiboot Specification 0.6.96, 3.2.
.include "guest.inc"
manifest "multiboot/multiboot.toml"
.set LOADER_MAGIC, 0x2badb002   # in EAX
.set HEADER_MAGIC, 0x1badb002
.set HEADER_FLAGS, 2            # sizes of memory, please

.align 4
    .long HEADER_MAGIC, HEADER_FLAGS, -(HEADER_MAGIC + HEADER_FLAGS)

.global start
start:
    cmp eax, LOADER_MAGIC
    mov esp, offset stack_top
    require_equal 1
    # Protected mode without paging, interrupts off.
    mov eax, cr0
    and eax, 0x80000001
    cmp eax, 1
    require_equal 2
    pushfd
    pop eax
    test eax, 0x20200
    require_equal 3

    # Sizes of memory, command line, memory map; 640 KiB and 15 MiB.
    mov eax, [ebx]
    and eax, 0x45
    cmp eax, 0x45
    require_equal 4
    cmp dword ptr [ebx + 4], 640
    require_equal 5
    cmp dword ptr [ebx + 8], 15 << 10
    require_equal 6
    # The command line is the manifest's.
    mov esi, [ebx + 16]
    mov edi, offset command_line
    mov ecx, offset command_line_end - command_line
    repe cmpsb
    require_equal 7
    # One range of RAM: its entry has 20 bytes without its size field.
    cmp dword ptr [ebx + 44], 24
    require_equal 8
    mov esi, [ebx + 48]
    mov edi, offset memory_map
    mov ecx, 24
    repe cmpsb
    require_equal 9

    # The test device's ports, four bytes of memory.
    mov eax, 0x12345678
    out 0xe0, eax
    in al, 0xe2
    cmp al, 0x34
    require_equal 10
    # Its memory.
    mov dword ptr [0xff000ffe], eax
    cmp dword ptr [0xff000ffe], eax
    require_equal 11
    # The version of the local APIC.
    cmp dword ptr [0xfee00030], 0x50014
    require_equal 12
    # fw_cfg tells the number of processors.
    mov dx, 0x510
    mov ax, 5
    out dx, ax
    inc dx
    in al, dx
    cmp al, 1
    require_equal 13

    # The divisor of the serial port is no output.
    mov dx, 0x3fb
    mov al, 0x83
    out dx, al
    mov dx, PORT_CONSOLE
    out dx, al
    mov dx, 0x3fb
    mov al, 3
    out dx, al
    mov esi, offset text
1:  mov dx, 0x3fd
2:  in al, dx
    test al, 0x20
    jz 2b
    mov dx, PORT_CONSOLE
    lodsb
    test al, al
    jz 3f
    out dx, al
    jmp 1b
3:  finish PASS

.data
command_line: .asciz "multiboot one two"
command_line_end:
text: .asciz "32 bits\n"
memory_map:
    .long 20
    .quad 0, 16 << 20
    .long 1
.bss
.skip 0x1000
stack_top:
