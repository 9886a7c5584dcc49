# A page fault that nobody handles, and a double fault that nobody handles: a triple fault, which ends the run.
# Pins down: SDM vol. 3A, 6.15, interrupt 8; KVM_EXIT_SHUTDOWN.
.include "guest.inc"
manifest "no_handler.toml"
.global start
start:
    mov edi, 0x40000000
    mov [rdi], rdi
    finish 1
