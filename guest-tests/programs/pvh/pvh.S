# A 32-bit program that boots by PVH: registers and start info are as Xen's header has them.
# Pins down: Xen's public/arch-x86/hvm/start_info.h.
.include "guest.inc"
manifest "pvh/pvh.toml"
.set START_MAGIC, 0x336ec578

.section .note.Xen, "a", @note
    .align 4
    .long 4, 4, 18              # name, value, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start
.text

.global start
start:
    cmp dword ptr [ebx], START_MAGIC
    mov esp, offset stack_top
    require_equal 1
    # Protected mode without paging, CR4 clear, interrupts off.
    mov eax, cr0
    and eax, 0x80000001
    cmp eax, 1
    require_equal 2
    mov eax, cr4
    test eax, eax
    require_equal 3
    pushfd
    pop eax
    test eax, 0x20300
    require_equal 4

    # Version 1, without modules and ACPI tables.
    cmp dword ptr [ebx + 4], 1
    require_equal 5
    cmp dword ptr [ebx + 12], 0
    require_equal 6
    mov eax, [ebx + 32]
    or eax, [ebx + 36]
    require_equal 7
    # The command line is the manifest's.
    cmp dword ptr [ebx + 28], 0
    require_equal 8
    mov esi, [ebx + 24]
    mov edi, offset command_line
    mov ecx, offset command_line_end - command_line
    repe cmpsb
    require_equal 9
    # One range of RAM.
    cmp dword ptr [ebx + 48], 1
    require_equal 10
    mov esi, [ebx + 40]
    mov edi, offset memory_map
    mov ecx, 24
    repe cmpsb
    require_equal 11
    # All of it is there.
    mov dword ptr [0xfffffc], 0x12345678
    cmp dword ptr [0xfffffc], 0x12345678
    require_equal 12

    mov dx, PORT_CONSOLE
    mov esi, offset text
1:  lodsb
    test al, al
    jz 2f
    out dx, al
    jmp 1b
2:  finish PASS

.data
command_line: .asciz "pvh one two"
command_line_end:
text: .asciz "PVH\n"
memory_map:
    .quad 0, 16 << 20
    .long 1, 0
.bss
.skip 0x1000
stack_top:
