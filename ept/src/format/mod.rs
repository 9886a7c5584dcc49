//! Table formats as data: which bit of an entry means what, at each level.
//!
//! A [`Format`] is computed once from the rows in `fields` and from what the processor offers. Masks for rights,
//! frames and reserved bits follow from the rows: a bit without a row is reserved.

mod build;
mod decode;
mod encode;
mod fields;
mod memory_type;
mod root;

use memory_model::PageSize;

use crate::access::{Access, Rights};

use fields::{Features, Field, bits_of};

pub use build::{Ept, Ia32e, Legacy32, Pae};
pub use decode::{Entry, Misconfiguration};
pub use encode::Attributes;
pub use fields::Role;
pub use memory_type::{Caching, MemoryType, Pat, PatType, effective_memory_type};
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
    /// A guest's or host's own 4- or 5-level paging: faults are #PF.
    Ia32e,
    /// PAE paging: two levels below the four page-directory pointers, which are registers.
    Pae,
    /// 32-bit paging: two levels of 32-bit entries.
    Legacy32,
    /// AMD's nested paging: IA-32e entries, each access one of user mode, faults are exits with a #PF code.
    Npt,
    /// Intel's EPT: faults are violations (exit 48) and misconfigurations (exit 49).
    Ept,
}

/// What of a format it takes to tell what a leaf means: the rights that there are, and whether it is EPT.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Offer(u8);

impl Offer {
    const EPT: u8 = 1 << RIGHTS;

    #[inline]
    pub(crate) const fn is_ept(self) -> bool {
        self.0 & Self::EPT != 0
    }
}

/// One table format on one processor.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    kind: Kind,
    offer: Offer,
    fields: &'static [Field],
    features: Features,
    levels: u8,
    max_phy_addr: MaxPhyAddr,
    /// log2 of the entries in a table: 9, or 10 in 32-bit paging.
    index_bits: u32,
    /// An input address can be translated if, with `input_bias` added, it is at most `input_last`.
    input_bias: u64,
    input_last: u64,
    /// Any of these: present.
    present: u64,
    /// Bits that are good when set: those that grant, but NX, and the flags. Of the others, what is no frame is good
    /// when clear.
    good: u64,
    /// By [`Rights`], lowest bit first: the bit that grants it, where `good` has it by being set; zero where there is
    /// no such right. Without EFER.NXE a good entry always grants EXEC, as NX is reserved.
    grants: [u64; RIGHTS],
    /// Those of `grants` that are in leaves alone.
    leaf_grants: u64,
    /// All of `grants`.
    all_grants: u64,
    accessed: u64,
    dirty: u64,
    /// By level, 1 to 5; 0 is unused.
    level: [LevelMasks; MAX_LEVEL + 1],
    /// Bit `n` is set if a present entry whose low six bits are `n` is well formed, but for reserved bits (rules
    /// M1, M2, M4).
    well_formed: u64,
    /// Bit `n` is set if any entry that [withholds](Format::withheld) `n` in its low six bits is present, and well formed
    /// whatever its high bits.
    plain_leaf: u64,
    /// By what an access does and who makes it, see [`ask_index`]: the bits that no entry of its walk may withhold.
    asks: [u64; 16],
}

/// What differs from level to level.
#[derive(Clone, Copy, Debug, Default)]
struct LevelMasks {
    /// Must be zero in a table pointer and in a leaf.
    reserved: [u64; 2],
    /// A present entry with any of these is a leaf: PS, all bits at level 1, none where there are no leaves.
    leaf: u64,
    /// An entry that [withholds](Format::withheld) none of these is the plainest table pointer: P or R, and nothing
    /// reserved, no leaf.
    plain_table: u64,
    /// The frame of a leaf.
    frame: u64,
    /// Where a leaf keeps bits 39:32 of its frame; zero but for 4 MiB pages.
    frame_high: u64,
    /// PS of a leaf.
    page_size: u64,
}

/// The highest level there is: PML5.
pub(crate) const MAX_LEVEL: usize = 5;

/// From where a 4 MiB leaf keeps bits 39:32 of its frame (20:13) to their place.
const FRAME_HIGH_SHIFT: u32 = 19;

/// How many bits [`Rights`] has.
const RIGHTS: usize = 7;

/// The place of an access in [`Format::asks`].
#[inline(always)]
const fn ask_index(access: Access) -> usize {
    (access.does.bits() & Rights::RWX.bits()) as usize | (access.user as usize) << 3
}

/// What the accessed and the dirty flag of a leaf say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Used {
    /// Somebody was there.
    pub accessed: bool,
    /// Somebody wrote there.
    pub written: bool,
}

impl Format {
    #[inline(always)]
    pub(crate) const fn offer(&self) -> Offer {
        self.offer
    }

    /// Whose rules judge the entries.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Levels of tables in memory: 4 or 5; 2 in PAE and 32-bit paging.
    #[inline]
    pub const fn levels(&self) -> u8 {
        self.levels
    }

    /// MAXPHYADDR.
    pub const fn max_phy_addr(&self) -> MaxPhyAddr {
        self.max_phy_addr
    }

    /// Bits of input address that the table translates; the two highest of PAE select the register.
    #[inline]
    pub const fn input_bits(&self) -> u32 {
        match self.kind {
            Kind::Pae | Kind::Legacy32 => 32,
            Kind::Ia32e | Kind::Npt | Kind::Ept => 12 + 9 * self.levels as u32,
        }
    }

    /// log2 of what one entry at that level (1 to 5) spans.
    #[inline]
    pub const fn shift(&self, level: u8) -> u32 {
        12 + self.index_bits * (level as u32 - 1)
    }

    /// The index of `address` in a table of that level.
    #[inline]
    pub const fn index(&self, level: u8, address: u64) -> u16 {
        (address >> self.shift(level)) as u16 & (self.entries() - 1)
    }

    /// How many entries a table has: 512, or 1024 in 32-bit paging.
    #[inline]
    pub const fn entries(&self) -> u16 {
        1 << self.index_bits
    }

    /// Bytes of an entry: 8, or 4 in 32-bit paging.
    #[inline]
    pub const fn entry_bytes(&self) -> u8 {
        if self.index_bits == 10 { 4 } else { 8 }
    }

    /// Bits 51:12, of which reserved ones are zero in a good entry of any format but that of 32-bit paging.
    pub(crate) const FRAME: u64 = bits_of(fields::IA32E, Features::empty(), Role::Frame, 1, true);

    /// The bits of a table pointer that are the table's address.
    #[inline]
    pub(crate) const fn table_frame(&self) -> u64 {
        self.level[1].frame
    }

    /// Whether hardware sets accessed and dirty flags.
    pub const fn has_accessed_dirty(&self) -> bool {
        self.accessed != 0
    }

    /// What the flags of a leaf say of its use; `None` where hardware does not set them.
    pub const fn used(&self, leaf: u64) -> Option<Used> {
        match self.has_accessed_dirty() {
            true => Some(Used { accessed: leaf & self.accessed != 0, written: leaf & self.dirty != 0 }),
            false => None,
        }
    }

    /// The size of a leaf at that level; `None` where there are no leaves.
    pub const fn page_size(&self, level: u8) -> Option<PageSize> {
        match self.level[level as usize].leaf {
            0 => None,
            _ if matches!(self.kind, Kind::Legacy32) && level == 2 => Some(PageSize::Size4M),
            _ => PageSize::of_level(level),
        }
    }

    /// Whether the format has leaves of that size.
    pub fn has_size(&self, size: PageSize) -> bool {
        self.page_size(size.level()) == Some(size)
    }

    /// The bits of that role in entries of that level (1 to 5), as a mask; zero where the processor does not
    /// offer it.
    pub const fn bits(&self, role: Role, level: u8, leaf: bool) -> u64 {
        bits_of(self.fields, self.features, role, level, leaf)
    }

    /// The bits that must be zero in a present entry of that level (1 to 5), as a mask.
    #[inline]
    pub const fn reserved(&self, level: u8, leaf: bool) -> u64 {
        self.level[level as usize].reserved[leaf as usize]
    }

    /// Whether the input address can be translated at all: canonical for IA-32e, narrow enough elsewhere (rule M9).
    #[inline]
    pub const fn translates(&self, address: u64) -> bool {
        address.wrapping_add(self.input_bias) <= self.input_last
    }

    /// `address` with the bits above the table's width filled in: the sign for IA-32e, zeroes otherwise.
    #[inline]
    pub(crate) const fn extend(&self, address: u64) -> u64 {
        let unused = 64 - self.input_bits();
        match self.kind {
            Kind::Ia32e => (((address << unused) as i64) >> unused) as u64,
            _ => (address << unused) >> unused,
        }
    }

    /// The flags that an access sets in the entries it uses: A, and D in a leaf that is written.
    #[inline(always)]
    pub(crate) const fn flags(&self, leaf: bool, write: bool) -> u64 {
        self.accessed | if leaf && write { self.dirty } else { 0 }
    }

    /// The entry with those flags.
    #[inline]
    pub(crate) const fn marked(&self, entry: u64, leaf: bool, write: bool) -> u64 {
        entry | self.flags(leaf, write)
    }

    /// Whether a fetch shows in a #PF code because of EFER.NXE (rule F2).
    pub(crate) const fn no_execute(&self) -> bool {
        self.features.contains(Features::NO_EXECUTE)
    }

    /// Whether a leaf may demand that guest tables lie in pages with paging-write alone (rule X4).
    #[inline]
    pub(crate) const fn has_guest_paging_verification(&self) -> bool {
        self.features.contains(Features::GUEST_PAGING_VERIFICATION)
    }

    /// Whether a violation tells what the guest's own tables grant (qualification bits 11:9).
    pub(crate) const fn advanced_exit_info(&self) -> bool {
        self.features.contains(Features::ADVANCED_EXIT_INFO)
    }
}
