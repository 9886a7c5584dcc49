//! `CPUID`: what this CPU has, and nothing else.

use crate::{SystemRegs, cr4};

/// MAXPHYADDR: the width of guest physical addresses.
pub const PHYSICAL_ADDRESS_BITS: u32 = 46;

const fn bits<const N: usize>(positions: [u32; N]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < N {
        mask |= 1 << positions[i];
        i += 1;
    }
    mask
}

const fn text<const N: usize>(text: &[u8; N], at: usize) -> u32 {
    u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]])
}

const NAME: &[u8; 12] = b"memvirt soft";

/// CMPXCHG16B, MOVBE, POPCNT.
const LEAF_1_ECX: u32 = bits([13, 22, 23]);
/// PSE, TSC, MSR, PAE, CX8, PGE, CMOV, PAT, CLFSH.
const LEAF_1_EDX: u32 = bits([3, 4, 5, 6, 8, 13, 15, 16, 19]);
/// SMEP, SMAP.
const LEAF_7_EBX: u32 = bits([7, 20]);
/// LAHF in 64-bit mode, LZCNT, PREFETCHW.
const LEAF_EXTENDED_ECX: u32 = bits([0, 5, 8]);
/// NX, pages of 1 GiB, long mode.
const LEAF_EXTENDED_EDX: u32 = bits([20, 26, 29]);

/// EAX, EBX, ECX and EDX of a leaf; zeros where there is none.
pub(super) fn cpuid(leaf: u32, subleaf: u32, system: &SystemRegs) -> [u32; 4] {
    let five_levels = system.cr4 & cr4::LA57 != 0;
    match (leaf, subleaf) {
        (0, _) => [7, text(NAME, 0), text(NAME, 8), text(NAME, 4)],
        // Family 6; CLFLUSH works on 8 * 8 bytes.
        (1, _) => [0x600, 8 << 8, LEAF_1_ECX, LEAF_1_EDX],
        (7, 0) => [0, LEAF_7_EBX, u32::from(five_levels) << 16, 0],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0001, _) => [0, 0, LEAF_EXTENDED_ECX, LEAF_EXTENDED_EDX],
        (0x8000_0008, _) => {
            let linear = if five_levels { 57 } else { 48 };
            [PHYSICAL_ADDRESS_BITS | linear << 8, 0, 0, 0]
        }
        _ => [0; 4],
    }
}
