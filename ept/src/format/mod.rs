//! Table formats as data: which bit of an entry means what, at each level.
//!
//! A [`Format`] is computed once from the rows in `fields` and from what the processor offers. Masks for rights,
//! frames and reserved bits follow from the rows: a bit without a row is reserved.

mod encode;
mod fields;
mod memory_type;
mod root;

use memory_model::PageSize;

use crate::access::{Access, Controls, Rights, first_level_grants, second_level_grants};
use fields::{Field, bits_of, known_bits};

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
    /// Must be zero, by level and for tables (0) and leaves (1).
    reserved: [[u64; 2]; MAX_LEVEL + 1],
    /// The frame of a leaf, by level; the address of a table is that of level 1.
    frame: [u64; MAX_LEVEL + 1],
    /// PS, by level; zero where there are no large leaves.
    page_size: [u64; MAX_LEVEL + 1],
    /// IPAT; zero outside EPT.
    ignore_pat: u64,
    /// PWT and PCD; zero in EPT.
    cache_bits: [u64; 2],
    /// PAT of a leaf, by level; zero in EPT.
    page_attribute: [u64; MAX_LEVEL + 1],
    /// Bit `n` is set if an entry whose low six bits are `n` is misconfigured (rules M1, M2, M4).
    malformed: u64,
}

/// The highest level there is: PML5.
pub(crate) const MAX_LEVEL: usize = 5;

impl Format {
    /// EPT, as that EPTP selects it on a processor with these capabilities.
    pub const fn ept(eptp: Eptp, caps: EptCaps, max_phy_addr: MaxPhyAddr) -> Self {
        let sizes = [caps.contains(EptCaps::PAGE_2M), caps.contains(EptCaps::PAGE_1G)];
        let mut format = Self::from_rows(Kind::Ept, fields::EPT, eptp.levels(), max_phy_addr, sizes, 0);
        if !eptp.accessed_dirty() {
            format.accessed = 0;
            format.dirty = 0;
        }
        format.malformed = malformed_ept(caps.contains(EptCaps::EXECUTE_ONLY));
        format
    }

    /// A guest's or host's own IA-32e paging.
    pub const fn ia32e(paging: Ia32e) -> Self {
        let dropped = if paging.no_execute { 0 } else { bits_of(fields::IA32E, Role::NoExecute, 1, true) };
        let sizes = [true, paging.page_1g];
        Self::from_rows(Kind::Ia32e, fields::IA32E, paging.levels, paging.max_phy_addr, sizes, dropped)
    }

    /// AMD's nested page tables: entries as in the host's own paging (rules N1, N2).
    pub const fn npt(host: Ia32e) -> Self {
        let mut format = Self::ia32e(host);
        format.kind = Kind::Npt;
        format
    }

    /// `large`: whether there are 2 MiB and 1 GiB leaves. `dropped`: bits that have a row, but not here.
    const fn from_rows(
        kind: Kind,
        rows: &'static [Field],
        levels: Levels,
        max_phy_addr: MaxPhyAddr,
        large: [bool; 2],
        dropped: u64,
    ) -> Self {
        let present = bits_of(rows, Role::Present, 1, true);
        let inverted = bits_of(rows, Role::NoExecute, 1, true) & !dropped;
        let [read, write, exec, user] = [
            bits_of(rows, Role::Read, 1, true),
            bits_of(rows, Role::Write, 1, true),
            bits_of(rows, Role::Execute, 1, true) | inverted,
            bits_of(rows, Role::User, 1, true),
        ];
        let mut format = Self {
            kind,
            fields: rows,
            levels,
            max_phy_addr,
            present: if present == 0 { read | write | exec } else { present },
            inverted,
            // Where a right has no bit of its own, being present grants it.
            grants: [or_else(read, present), write, or_else(exec, present), user],
            accessed: bits_of(rows, Role::Accessed, 1, true),
            dirty: bits_of(rows, Role::Dirty, 1, true),
            reserved: [[0; 2]; MAX_LEVEL + 1],
            frame: [0; MAX_LEVEL + 1],
            page_size: [0; MAX_LEVEL + 1],
            ignore_pat: bits_of(rows, Role::IgnorePat, 1, true),
            cache_bits: [
                bits_of(rows, Role::WriteThrough, 1, true),
                bits_of(rows, Role::CacheDisable, 1, true),
            ],
            page_attribute: [0; MAX_LEVEL + 1],
            malformed: 0,
        };
        let mut level = 1;
        while level <= MAX_LEVEL {
            let wide = !max_phy_addr.last() & bits_of(rows, Role::Frame, 1, true);
            format.reserved[level] = [
                !known_bits(rows, level as u8, false) | dropped | wide,
                !known_bits(rows, level as u8, true) | dropped | wide,
            ];
            format.page_attribute[level] = bits_of(rows, Role::PageAttribute, level as u8, true);
            format.frame[level] = bits_of(rows, Role::Frame, level as u8, true) & max_phy_addr.last();
            if (level == 2 && large[0]) || (level == 3 && large[1]) {
                format.page_size[level] = bits_of(rows, Role::PageSize, level as u8, true);
            }
            level += 1;
        }
        format
    }

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
        matches!(size, PageSize::Size4K) || self.page_size[size.level() as usize] != 0
    }

    /// The bits of that role in entries of that level (1 to 5), as a mask: the row of the format, whether
    /// or not this processor offers it.
    pub const fn bits(&self, role: Role, level: u8, leaf: bool) -> u64 {
        bits_of(self.fields, role, level, leaf)
    }

    /// The bits that must be zero in a present entry of that level (1 to 5), as a mask.
    #[inline]
    pub const fn reserved(&self, level: u8, leaf: bool) -> u64 {
        self.reserved[level as usize][leaf as usize]
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

    /// Whether a present entry at that level maps a page rather than pointing to a table.
    #[inline]
    pub const fn is_leaf(&self, level: u8, entry: u64) -> bool {
        level == 1 || entry & self.page_size[level as usize] != 0
    }

    /// What the entry is, at that level (1 to 5). The order is that of rules M6 and F1: absent, then malformed.
    #[inline]
    pub fn decode(&self, level: u8, entry: u64) -> Entry {
        if !self.is_present(entry) {
            return Entry::Absent;
        }
        let leaf = self.is_leaf(level, entry);
        // A table pointer has no memory type, and its bits 5:3 may mean other things.
        let low = entry & if leaf { 0x3f } else { 0x7 };
        let reserved = entry & self.reserved(level, leaf);
        if reserved != 0 || self.malformed >> low & 1 != 0 {
            return Entry::Malformed(self.misconfiguration(entry, leaf, reserved));
        }
        match PageSize::of_level(level) {
            Some(size) if leaf => Entry::Leaf(entry & self.frame[level as usize], size),
            _ => Entry::Table(entry & self.frame[1]),
        }
    }

    #[cold]
    fn misconfiguration(&self, entry: u64, leaf: bool, reserved: u64) -> Misconfiguration {
        let combination = self.malformed >> (entry & 0x7) & 1 != 0;
        if combination && entry & self.grants[1] != 0 {
            Misconfiguration::WriteWithoutRead
        } else if combination {
            Misconfiguration::ExecuteOnly
        } else if reserved != 0 {
            Misconfiguration::ReservedBits(reserved)
        } else {
            debug_assert!(leaf, "a table pointer has no memory type");
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

const fn or_else(bit: u64, other: u64) -> u64 {
    if bit == 0 { other } else { bit }
}

/// Rules M1, M2 and M4 for all values of bits 5:0: rights in 2:0, memory type in 5:3.
const fn malformed_ept(execute_only: bool) -> u64 {
    let mut bitmap = 0;
    let mut low = 0;
    while low < 64 {
        let rights = low & 0x7;
        let write_without_read = rights & 0b011 == 0b010;
        let bad_execute_only = rights == 0b100 && !execute_only;
        let bad_type = MemoryType::from_raw((low >> 3) as u8).is_none();
        if write_without_read || bad_execute_only || bad_type {
            bitmap |= 1 << low;
        }
        low += 1;
    }
    bitmap
}
