# INIT and SIPI start a second processor in real mode; then the two interrupt each other.
# Pins down: SDM vol. 3A, 8.4.3.
.include "guest.inc"
manifest "multiboot/two_processors.toml"
.include "multiboot/pc.inc"
.set TRAMPOLINE, 0x8000
.set VECTOR, 0x40

main:
    gate VECTOR, answered
    gate 0x41, asked
    mov esi, offset trampoline
    mov edi, TRAMPOLINE
    mov ecx, offset trampoline_end - trampoline
    rep movsb

    # To all others: INIT, and where they are to start.
    mov dword ptr [APIC_ICR], 3 << 18 | 1 << 14 | 5 << 8
    mov dword ptr [APIC_ICR], 3 << 18 | 6 << 8 | TRAMPOLINE >> 12
1:  pause
    cmp dword ptr [other_is_up], 1
    jne 1b
    cmp dword ptr [other_id], 1 << 24
    require_equal 1
    # Ask a hundred times; each question wakes the other one, and each answer this one.
    mov dword ptr [APIC_ICR_HIGH], 1 << 24
    mov ecx, 100
2:  mov dword ptr [APIC_ICR], 0x41
    sti
    hlt
    cli
    dec ecx
    jnz 2b
    cmp dword ptr [questions], 100
    require_equal 2
    cmp dword ptr [answers], 100
    require_equal 3
    finish PASS

answered:
    inc dword ptr [answers]
    mov dword ptr [APIC_EOI], 0
    interrupt_return

asked:
    inc dword ptr [questions]
    mov dword ptr [APIC_EOI], 0
    mov dword ptr [APIC_ICR_HIGH], 0
    mov dword ptr [APIC_ICR], VECTOR
    interrupt_return

second:
    mov eax, DATA
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset second_stack_top
    lidt [idtr]
    mov dword ptr [APIC_SVR], 0x1ff
    mov eax, [APIC_ID]
    mov [other_id], eax
    mov dword ptr [other_is_up], 1
    sti
3:  hlt
    jmp 3b

# Copied to where the SIPI points, and entered there with CS:IP = 0x0800:0.
.code16
trampoline:
    cli
    mov ax, cs
    mov ds, ax
    lgdtd ds:[trampoline_gdtr - trampoline]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea            # jmp CODE:second
    .long second
    .short CODE
trampoline_gdtr:
    .short 23
    .long gdt
trampoline_end:
.code32

.bss
other_is_up: .skip 4
other_id: .skip 4
questions: .skip 4
answers: .skip 4
.skip 0x1000
second_stack_top:
