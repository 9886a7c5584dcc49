//! `CPUID`: what the CPU says of itself. Instructions and control bits follow what it says.

use std::collections::BTreeMap;

use crate::soft::irqchip;
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

/// Whose processor `CPUID` says this is: programs take it as a sign of what there is beyond the feature bits.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Vendor {
    /// This one: `memvirt soft`.
    #[default]
    Memvirt,
    /// `GenuineIntel`. Compatibility mode has SYSENTER, but no SYSCALL.
    Intel,
    /// `AuthenticAMD`.
    Amd,
}

impl Vendor {
    const fn text(self) -> &'static [u8; 12] {
        match self {
            Self::Memvirt => b"memvirt soft",
            Self::Intel => b"GenuineIntel",
            Self::Amd => b"AuthenticAMD",
        }
    }
}

const NAME: &[u8; 12] = Vendor::Memvirt.text();

/// MONITOR, CMPXCHG16B, PCID, MOVBE, POPCNT.
const LEAF_1_ECX: u32 = bits([3, 13, 17, 22, 23]);
/// FPU, DE, PSE, TSC, MSR, PAE, MCE, CX8, SEP, MTRR, PGE, CMOV, PAT, PSE-36, CLFSH, FXSR, SSE, SSE2.
const LEAF_1_EDX: u32 = bits([0, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 19, 24, 25, 26]);
/// FSGSBASE, BMI1, SMEP, BMI2, INVPCID, ADX, SMAP, CLFLUSHOPT, CLWB.
const LEAF_7_EBX: u32 = bits([0, 3, 7, 8, 10, 19, 20, 23, 24]);
/// UMIP, PKU, LA57, RDPID, PKS.
const LEAF_7_ECX: u32 = bits([2, 3, 16, 22, 31]);
/// LAM.
const LEAF_7_1_EAX: u32 = bits([26]);
/// LAHF in 64-bit mode, LZCNT, PREFETCHW.
const LEAF_EXTENDED_ECX: u32 = bits([0, 5, 8]);
/// SYSCALL, NX, pages of 1 GiB, RDTSCP, long mode.
const LEAF_EXTENDED_EDX: u32 = bits([11, 20, 26, 27, 29]);
/// The TSC never stops.
const INVARIANT_TSC: u32 = bits([8]);
/// Linear addresses have 57 bits, if CR4.LA57 asks for them.
const LINEAR_ADDRESS_BITS: u32 = 57;

#[rustfmt::skip]
const DEFAULT: [(u32, u32, [u32; 4]); 8] = [
    (0, 0, [7, text(NAME, 0), text(NAME, 8), text(NAME, 4)]),
    // Family 6; CLFLUSH works on 8 * 8 bytes.
    (1, 0, [0x600, 8 << 8, LEAF_1_ECX, LEAF_1_EDX]),
    (7, 0, [1, LEAF_7_EBX, LEAF_7_ECX, 0]),
    (7, 1, [LEAF_7_1_EAX, 0, 0, 0]),
    (0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
    (0x8000_0001, 0, [0, 0, LEAF_EXTENDED_ECX, LEAF_EXTENDED_EDX]),
    (0x8000_0007, 0, [0, 0, 0, INVARIANT_TSC]),
    (0x8000_0008, 0, [PHYSICAL_ADDRESS_BITS | LINEAR_ADDRESS_BITS << 8, 0, 0, 0]),
];

/// Leaves that ECX selects in too.
const WITH_SUBLEAVES: [u32; 11] = [4, 7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1f];

/// A bit of CPUID that an instruction or a control bit depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Feature {
    leaf: u32,
    subleaf: u32,
    /// EAX, EBX, ECX or EDX.
    register: usize,
    bit: u32,
}

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

#[rustfmt::skip]
impl Feature {
    pub const MONITOR: Self = Self::new(1, ECX, 3);
    pub const X2APIC: Self = Self::new(1, ECX, 21);
    pub const TSC_DEADLINE: Self = Self::new(1, ECX, 24);
    pub const CX16: Self = Self::new(1, ECX, 13);
    pub const PCID: Self = Self::new(1, ECX, 17);
    pub const SSE4_2: Self = Self::new(1, ECX, 20);
    pub const MOVBE: Self = Self::new(1, ECX, 22);
    pub const POPCNT: Self = Self::new(1, ECX, 23);
    pub const XSAVE: Self = Self::new(1, ECX, 26);
    pub const DE: Self = Self::new(1, EDX, 2);
    pub const PSE: Self = Self::new(1, EDX, 3);
    pub const TSC: Self = Self::new(1, EDX, 4);
    pub const PAE: Self = Self::new(1, EDX, 6);
    pub const MCE: Self = Self::new(1, EDX, 7);
    pub const SEP: Self = Self::new(1, EDX, 11);
    pub const PGE: Self = Self::new(1, EDX, 13);
    pub const FXSR: Self = Self::new(1, EDX, 24);
    pub const SSE: Self = Self::new(1, EDX, 25);
    pub const SSE2: Self = Self::new(1, EDX, 26);
    pub const FSGSBASE: Self = Self::new(7, EBX, 0);
    pub const BMI1: Self = Self::new(7, EBX, 3);
    pub const SMEP: Self = Self::new(7, EBX, 7);
    pub const BMI2: Self = Self::new(7, EBX, 8);
    pub const INVPCID: Self = Self::new(7, EBX, 10);
    pub const ADX: Self = Self::new(7, EBX, 19);
    pub const SMAP: Self = Self::new(7, EBX, 20);
    pub const CLFLUSHOPT: Self = Self::new(7, EBX, 23);
    pub const CLWB: Self = Self::new(7, EBX, 24);
    pub const UMIP: Self = Self::new(7, ECX, 2);
    pub const PKU: Self = Self::new(7, ECX, 3);
    pub const LA57: Self = Self::new(7, ECX, 16);
    pub const RDPID: Self = Self::new(7, ECX, 22);
    pub const PKS: Self = Self::new(7, ECX, 31);
    pub const LAM: Self = Self { subleaf: 1, ..Self::new(7, EAX, 26) };
    pub const LZCNT: Self = Self::new(0x8000_0001, ECX, 5);
    pub const RDTSCP: Self = Self::new(0x8000_0001, EDX, 27);
}

impl Feature {
    const fn new(leaf: u32, register: usize, bit: u32) -> Self {
        Self { leaf, subleaf: 0, register, bit }
    }
}

/// The table that `CPUID` reads: EAX, EBX, ECX and EDX for each leaf and subleaf. It starts with all that this CPU
/// has; without a feature here the guest has none. OSXSAVE and OSPKE come from CR4.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cpuid {
    leaves: BTreeMap<(u32, u32), [u32; 4]>,
}

impl Default for Cpuid {
    fn default() -> Self {
        Self {
            leaves: DEFAULT.into_iter().map(|(leaf, subleaf, values)| ((leaf, subleaf), values)).collect(),
        }
    }
}

impl Cpuid {
    /// Puts a leaf into the table. Of a leaf without subleaves, `subleaf` is 0.
    pub fn set(&mut self, leaf: u32, subleaf: u32, registers: [u32; 4]) {
        self.leaves.insert((leaf, subleaf), registers);
    }

    /// EAX, EBX, ECX and EDX of a leaf; zeros where there is none.
    pub fn get(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let subleaf = if WITH_SUBLEAVES.contains(&leaf) { subleaf } else { 0 };
        self.leaves.get(&(leaf, subleaf)).copied().unwrap_or_default()
    }

    /// Changes the name, and nothing else.
    pub fn set_vendor(&mut self, vendor: Vendor) {
        let name = vendor.text();
        let [highest, ..] = self.get(0, 0);
        self.set(0, 0, [highest, text(name, 0), text(name, 8), text(name, 4)]);
    }

    /// The bit of leaf 1's EDX that says that there is a local APIC.
    pub(super) const APIC: u32 = bits([9]);

    /// Announces the local APIC of a processor, and its timer, which runs at the rate of the TSC.
    pub(crate) fn add_apic(&mut self, id: u32, x2apic: bool) {
        let [a, b, c, d] = self.get(1, 0);
        self.set(1, 0, [a, b | id << 24, c | u32::from(x2apic) << 21 | bits([24]), d | Self::APIC]);
        // One thread a core, and all cores in one package: the ID of the package is what is above 8 bits of its own.
        self.set(0xb, 0, [0, 1, 1 << 8, id]);
        self.set(0xb, 1, [8, 1 << 8, 2 << 8 | 1, id]);
        self.set(0xb, 2, [0, 0, 2, id]);
        // The crystal's rate, and the TSC's by it.
        self.set(0x15, 0, [1, 1, irqchip::TICKS_A_SECOND, 0]);
        let [_, name @ ..] = self.get(0, 0);
        self.set(0, 0, [0x15, name[0], name[1], name[2]]);
    }

    pub(super) fn has(&self, feature: Feature) -> bool {
        let Feature { leaf, subleaf, register, bit } = feature;
        self.get(leaf, subleaf)[register] >> bit & 1 != 0
    }

    pub(super) fn is_intel(&self) -> bool {
        let [_, b, c, d] = self.get(0, 0);
        [b, d, c].map(u32::to_le_bytes).concat() == *Vendor::Intel.text()
    }

    pub(super) fn physical_address_bits(&self) -> u32 {
        match self.get(0x8000_0008, 0)[EAX] & 0xff {
            bits @ 32..=52 => bits,
            _ => PHYSICAL_ADDRESS_BITS,
        }
    }

    /// What the instruction gives.
    pub(super) fn execute(&self, leaf: u32, subleaf: u32, system: &SystemRegs) -> [u32; 4] {
        let mut registers = self.get(leaf, subleaf);
        let copies = [(1, 27, cr4::OSXSAVE), (7, 4, cr4::PKE)];
        for (with_copy, bit, control) in copies {
            if leaf == with_copy && (leaf == 1 || subleaf == 0) {
                registers[ECX] = registers[ECX] & !(1 << bit) | u32::from(system.cr4 & control != 0) << bit;
            }
        }
        registers
    }
}
