//! Memory types, and where a leaf keeps them.

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
    /// IA-32e and NPT: an index into the PAT, `PAT << 2 | PCD << 1 | PWT`.
    Pat(u8),
}

impl Caching {
    /// Write back with IPAT: what KVM gives RAM in EPT (rule MT3).
    pub const EPT_RAM: Self = Self::Ept { memory_type: MemoryType::WriteBack, ignore_pat: true };
    /// PAT entry 0, which is write back after reset.
    pub const PAT_RAM: Self = Self::Pat(0);
}
