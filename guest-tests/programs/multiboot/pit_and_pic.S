# The 8254 interrupts through the 8259s, and other lines wait for it, or it for them.
# Pins down: priorities and end of interrupt of the 8259A.
.include "guest.inc"
manifest "multiboot/pit_and_pic.toml"
.include "multiboot/pc.inc"

main:
    gate 0x20, timer
    gate 0x21, line1
    gate 0x2b, line11
    mov dword ptr [APIC_LVT_LINT0], 0x700       # ExtINT: as firmware leaves it

    # Channel 0, mode 2, every 1193 counts: a millisecond.
    mov al, 0x34
    out PIT + 3, al
    mov al, 0xa9
    out PIT, al
    mov al, 0x04
    out PIT, al
    mov al, 0xfe
    out PIC + 1, al
    sti
    hlt
    hlt
    cli
    cmp dword ptr [ticks], 2
    require_equal 1
    mov al, 0xff
    out PIC + 1, al

    # Lines 11 and 1 at once: 1 first. Both handlers end what they have.
    mov al, 0xf9
    out PIC + 1, al
    mov al, 0xf7
    out PIC + 0x81, al
    mov dx, TEST_LINES + 11
    call pulse
    mov dx, TEST_LINES + 1
    call pulse
    sti
    settle
    cli
    cmp dword ptr [order], 0x111
    require_equal 2

    # Channel 2: its gate and its output are in port 0x61. Mode 0, a hundred counts.
    mov al, 0xb0
    out PIT + 3, al
    mov al, 100
    out PIT + 2, al
    mov al, 0
    out PIT + 2, al
    in al, 0x61
    test al, 0x20
    setz al
    cmp al, 1
    require_equal 3
    mov al, 1
    out 0x61, al
1:  in al, 0x61
    test al, 0x20
    jz 1b
    finish PASS

pulse:
    mov al, 1
    out dx, al
    mov al, 0
    out dx, al
    ret

timer:
    push eax
    inc dword ptr [ticks]
    mov al, 0x20
    out PIC, al
    pop eax
    interrupt_return

line1:
    push eax
    shl dword ptr [order], 4
    or dword ptr [order], 1
    mov al, 0x20
    out PIC, al
    pop eax
    interrupt_return

line11:
    push eax
    shl dword ptr [order], 8
    or dword ptr [order], 0x11
    mov al, 0x20
    out PIC + 0x80, al
    out PIC, al
    pop eax
    interrupt_return

.bss
ticks: .skip 4
order: .skip 4
