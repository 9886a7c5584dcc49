//! Root pointers: EPTP and CR3, checked as the processor checks them.

use bitflags::bitflags;

use super::{Levels, MaxPhyAddr, MemoryType};
use crate::error::Error;

bitflags! {
    /// The bits of IA32_VMX_EPT_VPID_CAP that concern the tables (rules E1 to E5).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
    pub struct EptCaps: u64 {
        /// Execute-only entries.
        const EXECUTE_ONLY = 1 << 0;
        /// Four levels.
        const LEVELS_4 = 1 << 6;
        /// Five levels.
        const LEVELS_5 = 1 << 7;
        /// EPTP memory type UC.
        const UNCACHEABLE = 1 << 8;
        /// EPTP memory type WB.
        const WRITE_BACK = 1 << 14;
        /// 2 MiB leaves.
        const PAGE_2M = 1 << 16;
        /// 1 GiB leaves.
        const PAGE_1G = 1 << 17;
        /// INVEPT.
        const INVEPT = 1 << 20;
        /// Accessed and dirty flags.
        const ACCESSED_DIRTY = 1 << 21;
        /// A violation tells what the guest's own tables grant (qualification bits 11:9).
        const ADVANCED_EXIT_INFO = 1 << 22;
        /// EPTP bit 7: supervisor shadow-stack control. Editions of the SDM disagree about whether a VM entry takes
        /// that bit: without this one it is refused (rule E4).
        const SUPERVISOR_SHADOW_STACK = 1 << 23;
        /// INVEPT of a single context.
        const INVEPT_SINGLE = 1 << 25;
        /// INVEPT of all contexts.
        const INVEPT_ALL = 1 << 26;
        /// INVVPID.
        const INVVPID = 1 << 32;
        /// INVVPID of one address.
        const INVVPID_ADDRESS = 1 << 40;
        /// INVVPID of a single context.
        const INVVPID_SINGLE = 1 << 41;
        /// INVVPID of all contexts.
        const INVVPID_ALL = 1 << 42;
        /// INVVPID of a single context but for its global translations.
        const INVVPID_SINGLE_NON_GLOBAL = 1 << 43;
        /// How many high bits of a linear address select HLAT: see [`hlat_prefix_size`](Self::hlat_prefix_size).
        const HLAT_PREFIX_SIZE = 0x3f << 48;
    }
}

impl EptCaps {
    /// The largest HLAT prefix size (bits 53:48, rule E5).
    pub const fn hlat_prefix_size(self) -> u8 {
        (self.intersection(Self::HLAT_PREFIX_SIZE).bits() >> 48) as u8
    }
}

/// An extended-page-table pointer that a VM entry accepts:
/// `N-1:12 root | SSS (7) | A/D (6) | levels - 1 (5:3) | type (2:0)`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Eptp(u64);

impl Eptp {
    const TYPE: u64 = 0x7;
    const LEVELS: u64 = 0x7 << 3;
    const ACCESSED_DIRTY: u64 = 1 << 6;
    const SUPERVISOR_SHADOW_STACK: u64 = 1 << 7;
    const ROOT: u64 = !0xfff;

    /// Checks an EPTP by rules E1 to E4.
    pub fn new(eptp: u64, caps: EptCaps, max_phy_addr: MaxPhyAddr) -> Result<Self, Error> {
        let memory_type = (eptp & Self::TYPE) as u8;
        let type_cap = match MemoryType::from_raw(memory_type) {
            Some(MemoryType::Uncacheable) => EptCaps::UNCACHEABLE,
            Some(MemoryType::WriteBack) => EptCaps::WRITE_BACK,
            _ => return Err(Error::EptpMemoryType { eptp, memory_type }),
        };
        if !caps.contains(type_cap) {
            return Err(Error::EptpMemoryType { eptp, memory_type });
        }
        let levels = ((eptp & Self::LEVELS) >> 3) as u8 + 1;
        let has_levels = match levels {
            4 => caps.contains(EptCaps::LEVELS_4),
            5 => caps.contains(EptCaps::LEVELS_5),
            _ => false,
        };
        if !has_levels {
            return Err(Error::EptpLevels { eptp, levels });
        }
        if eptp & Self::ACCESSED_DIRTY != 0 && !caps.contains(EptCaps::ACCESSED_DIRTY) {
            return Err(Error::EptpAccessedDirty { eptp });
        }
        let mut known = Self::TYPE | Self::LEVELS | Self::ACCESSED_DIRTY | Self::ROOT & max_phy_addr.last();
        if caps.contains(EptCaps::SUPERVISOR_SHADOW_STACK) {
            known |= Self::SUPERVISOR_SHADOW_STACK;
        }
        match eptp & !known {
            0 => Ok(Self(eptp)),
            bits => Err(Error::RootReservedBits { root: eptp, bits }),
        }
    }

    /// A write-back EPTP for the table at `root`.
    pub fn for_root(
        root: u64,
        levels: Levels,
        accessed_dirty: bool,
        caps: EptCaps,
        max_phy_addr: MaxPhyAddr,
    ) -> Result<Self, Error> {
        let flags = if accessed_dirty { Self::ACCESSED_DIRTY } else { 0 };
        Self::new(root | (levels as u64 - 1) << 3 | flags | MemoryType::WriteBack as u64, caps, max_phy_addr)
    }

    /// The whole value.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Physical address of the root table.
    pub const fn root(self) -> u64 {
        self.0 & Self::ROOT
    }

    /// Levels of the table.
    pub const fn levels(self) -> Levels {
        if self.0 & Self::LEVELS == 4 << 3 { Levels::Five } else { Levels::Four }
    }

    /// Whether accessed and dirty flags are on.
    pub const fn accessed_dirty(self) -> bool {
        self.0 & Self::ACCESSED_DIRTY != 0
    }

    /// Whether supervisor shadow-stack accesses are judged by bit 60 (rule X2).
    pub const fn supervisor_shadow_stack(self) -> bool {
        self.0 & Self::SUPERVISOR_SHADOW_STACK != 0
    }
}

impl core::fmt::Debug for Eptp {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Eptp({:#x})", self.0)
    }
}

/// A CR3. With CR4.PCIDE bits 11:0 are the PCID, else PWT and PCD are 3 and 4 and the rest is
/// ignored; no bit of 11:0 is reserved either way.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cr3(u64);

impl Cr3 {
    /// Checks a CR3 as MOV to CR3 does, with bit 63 ("keep translations") already taken off.
    pub fn new(cr3: u64, max_phy_addr: MaxPhyAddr) -> Result<Self, Error> {
        match cr3 & !max_phy_addr.last() {
            0 => Ok(Self(cr3)),
            bits => Err(Error::RootReservedBits { root: cr3, bits }),
        }
    }

    /// The whole value.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Physical address of the root table of 32-bit, 4- and 5-level paging.
    pub const fn root(self) -> u64 {
        self.0 & !0xfff
    }

    /// Physical address of the four page-directory pointers of PAE paging.
    pub const fn page_directory_pointers(self) -> u64 {
        self.0 & 0xffff_ffe0
    }
}

impl core::fmt::Debug for Cr3 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Cr3({:#x})", self.0)
    }
}
