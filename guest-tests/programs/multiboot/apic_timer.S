# The timer of the local APIC: it wakes from HLT, waits for the task priority, comes again and again if asked to.
# Pins down: SDM vol. 3A, 10.5.4 and 10.8.3.
.include "guest.inc"
manifest "multiboot/apic_timer.toml"
.include "multiboot/pc.inc"
.set VECTOR, 0x40

main:
    gate VECTOR, timer
    mov dword ptr [APIC_DIVIDE], 0xb            # by 1
    mov dword ptr [APIC_LVT_TIMER], VECTOR      # one shot

    # It ends a sleep. STI lets nothing come between it and HLT.
    mov dword ptr [APIC_INITIAL_COUNT], 100000
    sti
    hlt
after_hlt:
    cli
    cmp dword ptr [count], 1
    require_equal 1
    cmp dword ptr [came_from], offset after_hlt
    require_equal 2
    cmp dword ptr [APIC_CURRENT_COUNT], 0
    require_equal 3

    # It is held back by IF, then by its class in TPR, and not lost.
    mov dword ptr [APIC_TPR], VECTOR
    mov dword ptr [APIC_INITIAL_COUNT], 1
    settle
    mov eax, [APIC_LVT_TIMER - 0x120 + 0x20]    # IRR, vectors 0x40 to 0x5f
    test eax, 1
    sete al
    cmp al, 0
    require_equal 4
    sti
    settle
    cmp dword ptr [count], 1
    require_equal 5
    mov dword ptr [APIC_TPR], 0
    settle
    cmp dword ptr [count], 2
    require_equal 6

    # Periodic: three sleeps, three interrupts, or more of them if the host came late.
    mov dword ptr [APIC_LVT_TIMER], 1 << 17 | VECTOR
    mov dword ptr [APIC_INITIAL_COUNT], 1000000
    hlt
    hlt
    hlt
    mov dword ptr [APIC_INITIAL_COUNT], 0
    settle                                      # what was on its way comes
    cli
    cmp dword ptr [count], 5
    setae al
    cmp al, 1
    require_equal 7
    mov dword ptr [count], 5

    # An interrupt to itself, taken behind the instruction after STI.
    gate 0x50, itself
    mov dword ptr [APIC_ICR], 1 << 18 | 0x50
    sti
    inc dword ptr [order]
    settle
    cli
    cmp dword ptr [count], 6
    require_equal 8
    cmp dword ptr [order], 3                    # (0 + 1) * 3
    require_equal 9
    finish PASS

timer:
    mov eax, [esp]
    mov [came_from], eax
    inc dword ptr [count]
    mov dword ptr [APIC_EOI], 0
    interrupt_return

itself:
    mov eax, [order]
    lea eax, [eax + 2 * eax]
    mov [order], eax
    inc dword ptr [count]
    mov dword ptr [APIC_EOI], 0
    interrupt_return

.bss
count: .skip 4
came_from: .skip 4
order: .skip 4
