# Flash: it is read like memory, and written by way of its device. While the device traps reads, too, each of them comes out;
# then it is memory again (rule R7).
.include "guest.inc"
manifest "rom_device_switch.toml"
.set FLASH, 0x4000000

.global start
start:
    mov ebx, FLASH
    cmp dword ptr [rbx], 0
    require_equal 1
    mov dword ptr [rbx], 0x20   # a command
    cmp dword ptr [rbx], 0
    require_equal 2
    ring 1
    cmp dword ptr [rbx], 0x80   # its status
    require_equal 3
    ring 2
    cmp dword ptr [rbx], 0
    require_equal 4
    finish PASS
