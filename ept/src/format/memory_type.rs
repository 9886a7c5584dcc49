//! Memory types: where a leaf keeps them, and what the levels make of them together.

use super::Kind;
use super::fields::{Features, IA32E, Role, bits_of};

/// A memory type, by its number in EPT entries, MTRRs and the PAT.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum MemoryType {
    /// UC: uncacheable.
    Uncacheable = 0,
    /// WC: write combining.
    WriteCombining = 1,
    /// WT: write through.
    WriteThrough = 4,
    /// WP: write protected.
    WriteProtected = 5,
    /// WB: write back.
    WriteBack = 6,
}

impl MemoryType {
    /// The type of that number; `None` for 2, 3, 7 and above.
    pub const fn from_raw(raw: u8) -> Option<Self> {
        match raw {
            0 => Some(Self::Uncacheable),
            1 => Some(Self::WriteCombining),
            4 => Some(Self::WriteThrough),
            5 => Some(Self::WriteProtected),
            6 => Some(Self::WriteBack),
            _ => None,
        }
    }
}

/// How a leaf says what kind of memory it maps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Caching {
    /// EPT: a type, and whether it alone decides (rule MT1).
    Ept {
        /// Bits 5:3.
        memory_type: MemoryType,
        /// IPAT: the guest's PAT has no say.
        ignore_pat: bool,
    },
    /// All but EPT: an index into the PAT, `PAT << 2 | PCD << 1 | PWT`.
    Pat(u8),
}

impl Caching {
    /// Write back with IPAT: what KVM gives RAM in EPT (rule MT3).
    pub const EPT_RAM: Self = Self::Ept { memory_type: MemoryType::WriteBack, ignore_pat: true };
    /// PAT entry 0, which is write back after reset.
    pub const PAT_RAM: Self = Self::Pat(0);
}

impl Kind {
    /// What kind of memory a leaf at that level maps.
    #[inline]
    pub const fn caching(self, level: u8, leaf: u64) -> Caching {
        if let Self::Ept = self {
            let memory_type = match MemoryType::from_raw((leaf >> 3 & 0x7) as u8) {
                Some(memory_type) => memory_type,
                None => MemoryType::Uncacheable,
            };
            return Caching::Ept { memory_type, ignore_pat: leaf & 1 << 6 != 0 };
        }
        let [pwt, pcd, pat] = pat_bits(level);
        Caching::Pat(
            (leaf & pwt != 0) as u8 | ((leaf & pcd != 0) as u8) << 1 | ((leaf & pat != 0) as u8) << 2,
        )
    }
}

/// The bits of a PAT index in a leaf outside EPT, lowest first.
#[inline]
pub(super) const fn pat_bits(level: u8) -> [u64; 3] {
    const fn bits(level: u8) -> [u64; 3] {
        [
            bits_of(IA32E, Features::all(), Role::WriteThrough, level, true),
            bits_of(IA32E, Features::all(), Role::CacheDisable, level, true),
            bits_of(IA32E, Features::all(), Role::PageAttribute, level, true),
        ]
    }
    const SMALL: [u64; 3] = bits(1);
    const LARGE: [u64; 3] = bits(2);
    if level == 1 { SMALL } else { LARGE }
}

/// A type in the PAT: those of [`MemoryType`], and UC-.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PatType {
    /// UC.
    Uncacheable,
    /// UC-: UC, which WC in an MTRR or in EPT overrides.
    UncacheableMinus,
    /// WC.
    WriteCombining,
    /// WT.
    WriteThrough,
    /// WB.
    WriteBack,
    /// WP.
    WriteProtected,
}

/// IA32_PAT: eight types, a byte each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Pat([PatType; 8]);

impl Pat {
    /// After reset: WB, WT, UC-, UC, twice.
    pub const RESET: Self = match Self::new(0x0007_0406_0007_0406) {
        Some(pat) => pat,
        None => panic!("the types are good"),
    };

    /// Checks the register as WRMSR does: `None` if a byte is 2, 3 or above 7.
    pub const fn new(register: u64) -> Option<Self> {
        let bytes = register.to_le_bytes();
        let mut types = [PatType::Uncacheable; 8];
        let mut index = 0;
        while index < 8 {
            types[index] = match bytes[index] {
                0 => PatType::Uncacheable,
                1 => PatType::WriteCombining,
                4 => PatType::WriteThrough,
                5 => PatType::WriteProtected,
                6 => PatType::WriteBack,
                7 => PatType::UncacheableMinus,
                _ => return None,
            };
            index += 1;
        }
        Some(Self(types))
    }

    /// The type at an index as [`Caching::Pat`] has it; only its low three bits count.
    pub const fn get(self, index: u8) -> PatType {
        self.0[index as usize & 7]
    }
}

/// Rule MT1: what an EPT leaf and the guest's PAT make together. With IPAT the leaf decides alone; with CR0.CD set
/// everything is uncacheable. MTRRs have no say.
pub const fn effective_memory_type(
    ept: MemoryType,
    ignore_pat: bool,
    pat: PatType,
    cache_disable: bool,
) -> MemoryType {
    if cache_disable {
        return MemoryType::Uncacheable;
    }
    if ignore_pat {
        return ept;
    }
    let row = match ept {
        MemoryType::Uncacheable => 0,
        MemoryType::WriteCombining => 1,
        MemoryType::WriteThrough => 2,
        MemoryType::WriteProtected => 3,
        MemoryType::WriteBack => 4,
    };
    COMBINED[row][pat as usize]
}

/// By EPT type (UC, WC, WT, WP, WB), then by PAT type (UC, UC-, WC, WT, WB, WP).
const COMBINED: [[MemoryType; 6]; 5] = {
    use MemoryType::{
        Uncacheable as UC, WriteBack as WB, WriteCombining as WC, WriteProtected as WP, WriteThrough as WT,
    };
    [
        [UC, UC, WC, UC, UC, UC],
        [UC, WC, WC, UC, WC, UC],
        [UC, UC, WC, WT, WT, WP],
        [UC, WC, WC, WT, WP, WP],
        [UC, UC, WC, WT, WB, WP],
    ]
};
