# Lines of the I/O APIC: an edge comes once, a level again after its EOI as long as it lasts.
# Pins down: edges and levels of the redirection table (82093AA, 3.2.4).
.include "guest.inc"
manifest "multiboot/io_apic.toml"
.include "multiboot/pc.inc"
.set LINE, 14

.macro redirect low
    mov dword ptr [IO_APIC], 0x10 + 2 * LINE + 1
    mov dword ptr [IO_APIC + 0x10], 0           # to processor 0
    mov dword ptr [IO_APIC], 0x10 + 2 * LINE
    mov dword ptr [IO_APIC + 0x10], \low
.endm

main:
    gate 0x60, handler
    mov dx, TEST_LINES + LINE
    redirect 0x60
    sti
    mov al, 1
    out dx, al
    settle
    cmp dword ptr [count], 1
    require_equal 1
    mov al, 0
    out dx, al

    # It comes at least twice, for the second one lowers the line, and then no more.
    redirect 0x8060
    mov al, 1
    out dx, al
    settle
    mov eax, [count]
    cmp eax, 3
    setae bl
    cmp bl, 1
    require_equal 2
    settle
    cmp [count], eax
    require_equal 4
    cli
    # Remote IRR is clear: nothing is under way.
    mov dword ptr [IO_APIC], 0x10 + 2 * LINE
    test dword ptr [IO_APIC + 0x10], 1 << 14
    require_equal 3
    finish PASS

handler:
    inc dword ptr [count]
    cmp dword ptr [count], 3
    jb 1f
    push eax
    mov al, 0
    out dx, al
    pop eax
1:  mov dword ptr [APIC_EOI], 0
    interrupt_return

.bss
count: .skip 4
