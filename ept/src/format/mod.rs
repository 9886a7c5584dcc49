//! Table formats as data: which bit of an entry means what, at each level.
//!
//! A [`Format`] is computed once from the rows in `fields` and from what the processor offers. Masks for rights,
//! frames and reserved bits follow from the rows: a bit without a row is reserved.

mod build;
mod encode;
mod fields;
mod memory_type;
mod root;

use memory_model::PageSize;

use crate::access::{Access, Controls, Rights, first_level_grants, second_level_grants};
use fields::{Field, bits_of};

pub use encode::Attributes;
pub(crate) use encode::shift_of;
pub use fields::Role;
pub use memory_type::{Caching, MemoryType};
pub use root::{Cr3, EptCaps, Eptp};

/// How many levels a table has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Levels {
    /// PML4, PDPT, PD, PT: 48 bits of input address.
    Four = 4,
    /// PML5 above them: 57 bits.
    Five = 5,
}

/// MAXPHYADDR: how many physical address bits a processor has (the host's for EPT and NPT, the guest's for a
/// guest's tables).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MaxPhyAddr(u8);

impl MaxPhyAddr {
    /// The widest: 52 bits.
    pub const MAX: Self = Self(52);

    /// That many bits, 32 to 52; `None` outside.
    pub const fn new(bits: u8) -> Option<Self> {
        if bits >= 32 && bits <= 52 { Some(Self(bits)) } else { None }
    }

    /// How many bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The last physical address.
    pub const fn last(self) -> u64 {
        (1 << self.0) - 1
    }
}

/// Whose rules judge the entries, and which event a fault is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Kind {
    /// A guest's or host's own paging: faults are #PF.
    Ia32e,
    /// AMD's nested paging: IA-32e entries, each access one of user mode, faults are exits with a #PF code.
    Npt,
    /// Intel's EPT: faults are violations (exit 48) and misconfigurations (exit 49).
    Ept,
}

/// What a processor's IA-32e paging offers: the inputs of [`Format::ia32e`] and [`Format::npt`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ia32e {
    /// CR4.LA57.
    pub levels: Levels,
    /// MAXPHYADDR of the processor that walks.
    pub max_phy_addr: MaxPhyAddr,
    /// EFER.NXE; without it bit 63 is reserved.
    pub no_execute: bool,
    /// CPUID: 1 GiB pages.
    pub page_1g: bool,
}

/// What is wrong with a present entry. In EPT this is a misconfiguration, elsewhere a reserved-bit #PF.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Misconfiguration {
    /// Rule M1: W without R.
    #[error("writable but not readable")]
    WriteWithoutRead,
    /// Rule M2: X alone, on a processor without execute-only pages.
    #[error("execute-only, which the processor lacks")]
    ExecuteOnly,
    /// Rules M3, I1: these bits must be zero.
    #[error("reserved bits {0:#x} set")]
    ReservedBits(u64),
    /// Rule M4: no such memory type.
    #[error("memory type {0}")]
    MemoryType(u8),
}

/// What an entry turns out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Not present: all other bits are free.
    Absent,
    /// Present, and malformed.
    Malformed(Misconfiguration),
    /// Points to the next table, at that physical address.
    Table(u64),
    /// Maps a page: its first physical address, and its size.
    Leaf(u64, PageSize),
}

/// One table format on one processor.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    kind: Kind,
    fields: &'static [Field],
    levels: Levels,
    max_phy_addr: MaxPhyAddr,
    /// Any of these: present.
    present: u64,
    /// Bits that take a right away when set.
    inverted: u64,
    /// READ, WRITE, EXEC, USER: the bit that grants it, after `inverted`; zero where there is no such right.
    grants: [u64; 4],
    accessed: u64,
    dirty: u64,
    /// By level, 1 to 5; 0 is unused.
    level: [LevelMasks; MAX_LEVEL + 1],
    /// IPAT; zero outside EPT.
    ignore_pat: u64,
    /// PWT and PCD; zero in EPT.
    cache_bits: [u64; 2],
    /// Bit `n` is set if an entry whose low six bits are `n` is misconfigured (rules M1, M2, M4).
    malformed: u64,
}

/// What differs from level to level.
#[derive(Clone, Copy, Debug, Default)]
struct LevelMasks {
    /// Must be zero in a table pointer and in a leaf.
    reserved: [u64; 2],
    /// A present entry with any of these is a leaf: PS, all bits at level 1, none where there are no leaves.
    leaf: u64,
    /// The frame of a leaf.
    frame: u64,
    /// PS of a leaf.
    page_size: u64,
    /// PAT of a leaf; zero in EPT.
    page_attribute: u64,
}

/// The highest level there is: PML5.
pub(crate) const MAX_LEVEL: usize = 5;

impl Format {
    /// Whose rules judge the entries.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Levels of the table.
    #[inline]
    pub const fn levels(&self) -> u8 {
        self.levels as u8
    }

    /// MAXPHYADDR.
    pub const fn max_phy_addr(&self) -> MaxPhyAddr {
        self.max_phy_addr
    }

    /// Bits of input address that the table translates.
    #[inline]
    pub const fn input_bits(&self) -> u32 {
        12 + 9 * self.levels() as u32
    }

    /// Whether hardware sets accessed and dirty flags.
    pub const fn has_accessed_dirty(&self) -> bool {
        self.accessed != 0
    }

    /// Whether the format has leaves of that size.
    pub const fn has_size(&self, size: PageSize) -> bool {
        self.level[size.level() as usize].leaf != 0
    }

    /// The bits of that role in entries of that level (1 to 5), as a mask: the row of the format, whether
    /// or not this processor offers it.
    pub const fn bits(&self, role: Role, level: u8, leaf: bool) -> u64 {
        bits_of(self.fields, role, level, leaf)
    }

    /// The bits that must be zero in a present entry of that level (1 to 5), as a mask.
    #[inline]
    pub const fn reserved(&self, level: u8, leaf: bool) -> u64 {
        self.level[level as usize].reserved[leaf as usize]
    }

    /// Whether the input address can be translated at all: canonical for IA-32e, narrow enough for EPT and
    /// NPT (rule M9).
    #[inline]
    pub const fn translates(&self, address: u64) -> bool {
        match self.kind {
            Kind::Ia32e => self.extend(address) == address,
            Kind::Npt | Kind::Ept => address >> self.input_bits() == 0,
        }
    }

    /// `address` with the bits above the table's width filled in: the sign for IA-32e, zeroes otherwise.
    #[inline]
    pub(crate) const fn extend(&self, address: u64) -> u64 {
        let unused = 64 - self.input_bits();
        match self.kind {
            Kind::Ia32e => (((address << unused) as i64) >> unused) as u64,
            Kind::Npt | Kind::Ept => (address << unused) >> unused,
        }
    }

    /// Whether the entry is present.
    #[inline]
    pub const fn is_present(&self, entry: u64) -> bool {
        entry & self.present != 0
    }

    /// What the entry is, at that level (1 to 5). The order is that of rules M6 and F1: absent, then malformed.
    #[inline]
    pub fn decode(&self, level: u8, entry: u64) -> Entry {
        if !self.is_present(entry) {
            return Entry::Absent;
        }
        let masks = &self.level[level as usize];
        let leaf = entry & masks.leaf != 0;
        let reserved = entry & masks.reserved[usize::from(leaf)];
        // In a table pointer bits 5:3 are no memory type, but then they are reserved.
        if reserved != 0 || self.malformed >> (entry & 0x3f) & 1 != 0 {
            return Entry::Malformed(self.misconfiguration(entry, reserved));
        }
        match PageSize::of_level(level) {
            Some(size) if leaf => Entry::Leaf(entry & masks.frame, size),
            _ => Entry::Table(entry & self.level[1].frame),
        }
    }

    #[cold]
    fn misconfiguration(&self, entry: u64, reserved: u64) -> Misconfiguration {
        let combination = self.malformed >> (entry & 0x7) & 1 != 0;
        if combination && entry & self.grants[1] != 0 {
            Misconfiguration::WriteWithoutRead
        } else if combination {
            Misconfiguration::ExecuteOnly
        } else if reserved != 0 {
            Misconfiguration::ReservedBits(reserved)
        } else {
            Misconfiguration::MemoryType((entry >> 3 & 0x7) as u8)
        }
    }

    /// What one entry grants by itself.
    pub fn rights(&self, entry: u64) -> Rights {
        self.merged_rights(entry ^ self.inverted)
    }

    /// An entry in the shape whose AND over a walk is what the walk grants (rule I4: NX is ORed).
    #[inline]
    pub(crate) const fn mergeable(&self, entry: u64) -> u64 {
        entry ^ self.inverted
    }

    /// The rights in an AND of [`mergeable`](Self::mergeable) entries.
    #[inline]
    pub(crate) fn merged_rights(&self, merged: u64) -> Rights {
        const ORDER: [Rights; 4] = [Rights::READ, Rights::WRITE, Rights::EXEC, Rights::USER];
        let granted = ORDER.into_iter().zip(self.grants).filter(|&(_, bit)| merged & bit != 0);
        granted.fold(Rights::empty(), |rights, (right, _)| rights | right)
    }

    /// Whether these rights allow the access.
    #[inline]
    pub(crate) fn grants(&self, rights: Rights, access: Access, controls: Controls) -> bool {
        match self.kind {
            Kind::Ia32e => first_level_grants(rights, access, controls),
            Kind::Npt | Kind::Ept => second_level_grants(rights, access, self.grants[3] != 0),
        }
    }

    /// How a read of a guest's own table counts in this second-level table: rules A2 and N2.
    #[inline]
    pub(crate) const fn guest_table_access(&self) -> Access {
        match self.kind {
            Kind::Npt => Access::READ_WRITE,
            Kind::Ept if self.has_accessed_dirty() => Access::READ_WRITE,
            Kind::Ept | Kind::Ia32e => Access::READ,
        }
    }

    /// The entry with the flags that an access sets: A, and D in a leaf that is written.
    #[inline]
    pub(crate) const fn marked(&self, entry: u64, leaf: bool, write: bool) -> u64 {
        entry | self.accessed | if leaf && write { self.dirty } else { 0 }
    }

    /// Whether a fetch shows in a #PF code because of EFER.NXE (rule F2).
    pub(crate) const fn no_execute(&self) -> bool {
        self.inverted != 0
    }
}
