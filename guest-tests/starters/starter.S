# NAME: write here what the guest shows, and which rule it pins down.
#
# It starts at ring 3 in long mode. All memory is mapped one to one, and the stack is ready. guest.inc has the macros.
.include "guest.inc"
manifest "NAME.toml"
.set BANK, 0x4000000            # the region of the manifest

.global start
start:
    write_pages BANK, 16        # its own address into each page
    require_pages 1, BANK, 16   # if one is missing, the run ends with code 1
    ring 1                      # the host does the steps of bell 1, and looks
    require_zero 2, BANK, 4
    require_pages 3, (BANK+4*PAGE), 12
    finish PASS
