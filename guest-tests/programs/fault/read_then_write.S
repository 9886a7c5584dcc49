# A page that was read first may be written without another fault: KVM asks for a page that can be written, if the host
# has one, at the first read.
.include "guest.inc"
manifest "read_then_write.toml"
.global start
start:
    write_pages buffer, 16      # the host has pages, so that none is the zero page
    ring 1
    require_pages 1, buffer, 16
    ring 2
    write_pages buffer, 16
    ring 3
    finish PASS

.bss
.balign PAGE
.global buffer
buffer: .skip 16 * PAGE
