# Pages written in protected mode with paging off: linear addresses are physical ones, and the second level alone says where
# they lie (KVM's MMU is then direct, even on a host without EPT: rule K3). It asks nothing of its loader, so that it runs
# on other machines too: `qemu-system-x86_64 -machine microvm -device isa-debug-exit -kernel pvh_touch.elf`.
.include "guest.inc"
manifest "pvh_touch.toml"

.section .note.Xen, "a", @note
    .align 4
    .long 4, 4, 18              # name, value, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long start
.text

.global start
start:
    mov ecx, 64
    mov edi, offset buffer
1:  mov [edi], edi
    mov dword ptr [edi + 4], 0
    add edi, PAGE
    dec ecx
    jnz 1b
    finish PASS

.bss
.balign PAGE
.global buffer
buffer: .skip 64 * PAGE
