# Two aliases put the halves of one region together the other way round: pages that are neighbours for the guest are not in
# memory, and each is the right one.
# Pins down: an alias shows a part of its target from an offset on (rule R3).
.include "guest.inc"
manifest "alias_of_parts.toml"
.set REGION, 0x4000000
.set TURNED, 0x5000000
.set HALF, 4 * PAGE

.global start
start:
    write_pages REGION, 8
    require_pages 1, TURNED, 4, (REGION+HALF-TURNED)
    require_pages 2, (TURNED+HALF), 4, (REGION-TURNED-HALF)
    mov eax, TURNED + HALF - 4  # over the seam: the last of the region, then its first
    mov qword ptr [rax], -1
    mov eax, REGION + 2 * HALF - 4
    cmp dword ptr [rax], -1
    require_equal 3
    mov eax, REGION
    cmp dword ptr [rax], -1
    require_equal 4
    finish PASS
