# A device sees every width as it is, at any address: also where an access crosses its registers of 8 bytes.
# Pins down: an exit has 1 to 8 bytes at any address (KVM_EXIT_MMIO).
.include "guest.inc"
manifest "mmio_sizes.toml"
.set DEVICE, 0x2000000

.global start
start:
    mov ebx, DEVICE
    mov byte ptr [rbx + 1], 0x11
    mov word ptr [rbx + 3], 0x2222
    mov dword ptr [rbx + 6], 0x33333333
    mov rax, 0x4444444444444444
    mov [rbx + 0xd], rax
    movzx eax, byte ptr [rbx + 0x21]
    cmp eax, 0x88
    require_equal 1
    movsx eax, word ptr [rbx + 0x23]
    cmp eax, 0xffff8788
    require_equal 2
    mov eax, [rbx + 0x25]
    cmp eax, 0x85868788
    require_equal 3
    mov rax, [rbx + 0x2b]
    mov rcx, 0x7182838485868788
    cmp rax, rcx
    require_equal 4
    finish PASS
