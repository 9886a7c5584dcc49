//! What can be wrong: each finding with its place, what was expected and what was seen.

use core::fmt;

use memory_model::{AddrRange, Gpa, Gva, Hpa, PageSize};

use super::host::HostPage;
use crate::access::Rights;
use crate::format::{Caching, Misconfiguration};
use crate::tlb::Translation;
use crate::walk::Path;

/// What must hold of second-level tables at rest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Invariant {
    /// Each address of a leaf lies in exactly one slot.
    OneSlot = 1,
    /// Each 4 KiB frame of a leaf is the one that the host has behind the slot.
    Frame = 2,
    /// A leaf grants no more than slot, dirty log and host do.
    Rights = 3,
    /// A large leaf is aligned and inside one slot, whose HVA lies alike in its page.
    LargeLeaf = 4,
    /// No entry is malformed, nor is a root.
    WellFormed = 5,
    /// Pointers to tables grant everything, if that is the policy; what translates nothing is zero or a known encoding.
    NonLeaf = 6,
    /// Each table is reached once, at one level, and lies in RAM: tables form a tree.
    Tree = 7,
    /// No table is mapped into a guest.
    TablesHidden = 8,
    /// No frame has two guest addresses, unless it is shared.
    NoAlias = 9,
    /// RAM and devices have their memory types; encryption bit and user bit are set everywhere.
    MemoryType = 10,
    /// D implies A.
    DirtyAccessed = 11,
    /// There are as many leaves of each size as the hypervisor counts.
    LeafCounts = 12,
    /// Cached translations are a subset of the tables.
    Flushed = 13,
    /// A shadow table is the guest's own tables put over the slots.
    Shadow = 14,
    /// The tables reached are those that their owner lists.
    Ownership = 15,
}

impl Invariant {
    /// All of them, by number.
    pub const ALL: [Self; 15] = [
        Self::OneSlot,
        Self::Frame,
        Self::Rights,
        Self::LargeLeaf,
        Self::WellFormed,
        Self::NonLeaf,
        Self::Tree,
        Self::TablesHidden,
        Self::NoAlias,
        Self::MemoryType,
        Self::DirtyAccessed,
        Self::LeafCounts,
        Self::Flushed,
        Self::Shadow,
        Self::Ownership,
    ];

    /// Its number, 1 to 15.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// What it says, in a few words.
    pub const fn title(self) -> &'static str {
        match self {
            Self::OneSlot => "each leaf in one slot",
            Self::Frame => "each frame the host's",
            Self::Rights => "rights within the slot's",
            Self::LargeLeaf => "large leaves inside one slot",
            Self::WellFormed => "no misconfiguration",
            Self::NonLeaf => "rights of non-leaf entries",
            Self::Tree => "tables form a tree",
            Self::TablesHidden => "no table mapped into a guest",
            Self::NoAlias => "no frame mapped twice",
            Self::MemoryType => "memory types",
            Self::DirtyAccessed => "D implies A",
            Self::LeafCounts => "leaf counts",
            Self::Flushed => "cached translations",
            Self::Shadow => "shadow tables",
            Self::Ownership => "tables and their owner",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Copy, Debug)]
pub struct Finding {
    /// Index of the guest.
    pub guest: usize,
    /// Index of the root among the guest's.
    pub root: usize,
    /// The first address concerned; zero for what concerns a whole guest.
    pub address: Input,
    /// The entries from the root to the one that is wrong, as they were read; empty for what concerns a whole guest.
    pub path: Path,
    /// What is wrong with it.
    pub violation: Violation,
}

/// Where a table was reached, or a frame mapped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Place {
    /// Index of the guest.
    pub guest: usize,
    /// Index of the root among the guest's.
    pub root: usize,
    /// The address that its tables translate.
    pub address: Input,
}

/// An address that tables translate.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Input {
    /// By a second level.
    Gpa(Gpa),
    /// By a shadow.
    Gva(Gva),
}

impl Input {
    /// The raw value.
    pub const fn raw(self) -> u64 {
        match self {
            Self::Gpa(gpa) => gpa.raw(),
            Self::Gva(gva) => gva.raw(),
        }
    }
}

impl Default for Input {
    fn default() -> Self {
        Self::Gpa(Gpa(0))
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gpa(gpa) => write!(f, "GPA {gpa}"),
            Self::Gva(gva) => write!(f, "GVA {gva}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of guest {}, root {}", self.address, self.guest, self.root)
    }
}

/// What is wrong: what was expected, and what was seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// 1: a leaf where no slot is.
    #[error("a leaf for {hpa} outside all slots")]
    NoSlot {
        /// What it maps.
        hpa: Hpa,
    },
    /// 1: two slots of the guest share addresses.
    #[error("the slots at {first} and {second} overlap")]
    SlotsOverlap {
        /// Base of the one.
        first: Gpa,
        /// Base of the other.
        second: Gpa,
    },
    /// 2: frames that are not the host's.
    #[error("{at} is at {seen}, the host has {expected} there ({wrong} frames wrong)")]
    Frame {
        /// The first page that is wrong.
        at: Gpa,
        /// What the host has there.
        expected: HostPage,
        /// What the leaf maps.
        seen: Hpa,
        /// How many frames of the leaf are wrong.
        wrong: u64,
    },
    /// 3: a leaf grants too much.
    #[error("grants {seen:?}, {limit} allows {allowed:?}")]
    Rights {
        /// All that may be granted.
        allowed: Rights,
        /// What the leaf grants.
        seen: Rights,
        /// What forbids the rest.
        limit: Limit,
    },
    /// 3: a large leaf that may be written, in a slot whose writes are logged page by page.
    #[error("a writable {size} leaf where writes are logged by the 4K page")]
    LoggedLarge {
        /// Size of the leaf.
        size: PageSize,
    },
    /// 4: a large leaf that reaches out of its slot.
    #[error("a leaf of {leaf}, its slot has {slot} of it")]
    Straddles {
        /// What the leaf maps.
        leaf: AddrRange<Gpa>,
        /// The part of it that is in the slot.
        slot: AddrRange<Gpa>,
    },
    /// 4: the slot's HVA lies differently in a page of that size than its GPA.
    #[error("a {size} leaf whose HVA is {seen:#x} into such a page")]
    Incongruent {
        /// Size of the leaf.
        size: PageSize,
        /// The HVA's offset; expected is zero.
        seen: u64,
    },
    /// 5: a malformed entry.
    #[error("{reason}")]
    Misconfigured {
        /// What is wrong with it.
        reason: Misconfiguration,
    },
    /// 5: a root that no table can have.
    #[error("root {root:#x} has bits {bits:#x} outside an address")]
    Root {
        /// The root.
        root: u64,
        /// The bits that must be zero.
        bits: u64,
    },
    /// 6: a pointer to a table with fewer rights than it can grant.
    #[error("a pointer to a table grants {seen:?}, not {expected:?}")]
    TableRights {
        /// All that it can grant.
        expected: Rights,
        /// What it grants.
        seen: Rights,
    },
    /// 6: an entry that translates nothing is neither zero nor a known encoding.
    #[error("absent, but {seen:#x} and not 0")]
    NotZero {
        /// The entry.
        seen: u64,
    },
    /// 7: a table that was reached before; it is not followed again.
    #[error(
        "table {table} is reached again as one of level {level}: it is one of level {first_level} at {first}"
    )]
    Reached {
        /// The table.
        table: Hpa,
        /// The level it has here.
        level: u8,
        /// Where it was reached first.
        first: Place,
        /// The level it has there.
        first_level: u8,
    },
    /// 7: a table outside of RAM, or where no memory is.
    #[error("table {table} of level {level} is not in RAM")]
    Outside {
        /// The table.
        table: Hpa,
        /// Its level.
        level: u8,
    },
    /// 8: a table's frame is mapped into a guest.
    #[error("maps {table}, which is a table of level {level} for {of}")]
    TableMapped {
        /// The table.
        table: Hpa,
        /// Its level.
        level: u8,
        /// The first address that it translates.
        of: Place,
    },
    /// 9: a frame that has another address too.
    #[error("maps {hpa}, and so does {other}")]
    Alias {
        /// The frame.
        hpa: Hpa,
        /// The first address that maps it.
        other: Place,
    },
    /// 10: a leaf of another memory type.
    #[error("memory type {seen:?}, not {expected:?}")]
    MemoryType {
        /// The policy's.
        expected: Caching,
        /// The leaf's.
        seen: Caching,
    },
    /// 10: the encryption bit is clear.
    #[error("encryption bits {seen:#x}, not {expected:#x}")]
    Encryption {
        /// The policy's.
        expected: u64,
        /// The entry's.
        seen: u64,
    },
    /// 10: a leaf of nested tables without U, which no access gets through.
    #[error("U is clear")]
    Supervisor,
    /// 11: D without A.
    #[error("dirty but not accessed")]
    DirtyNotAccessed,
    /// 12: there are more or fewer leaves than the hypervisor counts.
    #[error("{seen} leaves of {size}, not {expected}")]
    LeafCount {
        /// Their size.
        size: PageSize,
        /// The hypervisor's count.
        expected: u64,
        /// How many were found.
        seen: u64,
    },
    /// 13: a processor remembers what the tables no longer give.
    #[error("processor {processor} remembers {remembered}, now it is {}", Present(*present))]
    Remembered {
        /// Index of the processor among the guest's caches.
        processor: usize,
        /// What it remembers.
        remembered: Translation,
        /// What the tables say now; `None` if nothing.
        present: Option<Translation>,
    },
    /// 14: a shadow leaf where the guest's own tables, as they are, have no page.
    #[error("a leaf for {seen}, the guest's tables have no page: {reason}")]
    Stale {
        /// Why there is none.
        reason: NoPage,
        /// What the leaf maps.
        seen: Hpa,
    },
    /// 14: frames that are not what slot and host have for the guest's page.
    #[error("guest page {gpa} is at {seen}, the host has {expected} there ({wrong} frames wrong)")]
    ShadowFrame {
        /// The first page that is wrong, by the guest's own tables.
        gpa: Gpa,
        /// What the host has there.
        expected: HostPage,
        /// What the leaf maps.
        seen: Hpa,
        /// How many frames of the leaf are wrong.
        wrong: u64,
    },
    /// 14: a shadow leaf that grants, with the pointers to it, more than the guest's own tables do; or W while the
    /// guest's leaf has no D.
    #[error("grants {seen:?}, the guest's tables allow {allowed:?} for its page {gpa}")]
    GuestRights {
        /// The guest's page.
        gpa: Gpa,
        /// All that may be granted.
        allowed: Rights,
        /// What is granted.
        seen: Rights,
    },
    /// 14: a shadow leaf larger than the guest's page.
    #[error("a {seen} leaf, the guest's page {gpa} is one of {expected}")]
    LargerThanGuests {
        /// The guest's page.
        gpa: Gpa,
        /// Its size.
        expected: PageSize,
        /// The leaf's.
        seen: PageSize,
    },
    /// 8: the guest may write one of its tables, whose shadow is to be kept in step.
    #[error("the guest's table {table} is writable")]
    GuestTableWritable {
        /// The first such table.
        table: Gpa,
    },
    /// 15: a table that its owner does not list.
    #[error("table {table} is in use and not its owner's")]
    NotOwned {
        /// The table.
        table: Hpa,
    },
    /// 15: a table that its owner lists and that was not reached.
    #[error("table {table} is its owner's and not in use")]
    NotReached {
        /// The table.
        table: Hpa,
    },
}

struct Present(Option<Translation>);

impl fmt::Display for Present {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(present) => present.fmt(f),
            None => f.write_str("nothing"),
        }
    }
}

/// Why a guest's own tables have no page at an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoPage {
    /// They do not translate such addresses.
    #[error("no such address")]
    NotTranslated,
    /// An entry is not present.
    #[error("not present")]
    NotPresent,
    /// An entry is malformed.
    #[error("{reason}")]
    Malformed {
        /// What is wrong with it.
        reason: Misconfiguration,
    },
    /// An entry has no A: an access through the shadow would not set it.
    #[error("A is clear at level {level}")]
    NotAccessed {
        /// Level of the entry.
        level: u8,
    },
    /// A table lies in no slot.
    #[error("no slot holds table {table}")]
    TableOutside {
        /// The table.
        table: Gpa,
    },
}

/// What keeps a leaf from being writable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Limit {
    /// The slot is read-only.
    ReadonlySlot,
    /// Writes are logged, and the page is not in the log.
    DirtyLog,
    /// The host may not write the page.
    Host,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadonlySlot => "the read-only slot",
            Self::DirtyLog => "the dirty log",
            Self::Host => "the host",
        })
    }
}

impl Violation {
    /// The invariant that is broken.
    pub const fn invariant(&self) -> Invariant {
        match self {
            Self::NoSlot { .. } | Self::SlotsOverlap { .. } => Invariant::OneSlot,
            Self::Frame { .. } => Invariant::Frame,
            Self::Rights { .. } | Self::LoggedLarge { .. } => Invariant::Rights,
            Self::Straddles { .. } | Self::Incongruent { .. } => Invariant::LargeLeaf,
            Self::Misconfigured { .. } | Self::Root { .. } => Invariant::WellFormed,
            Self::TableRights { .. } | Self::NotZero { .. } => Invariant::NonLeaf,
            Self::Reached { .. } | Self::Outside { .. } => Invariant::Tree,
            Self::TableMapped { .. } | Self::GuestTableWritable { .. } => Invariant::TablesHidden,
            Self::Alias { .. } => Invariant::NoAlias,
            Self::MemoryType { .. } | Self::Encryption { .. } | Self::Supervisor => Invariant::MemoryType,
            Self::DirtyNotAccessed => Invariant::DirtyAccessed,
            Self::LeafCount { .. } => Invariant::LeafCounts,
            Self::Remembered { .. } => Invariant::Flushed,
            Self::Stale { .. }
            | Self::ShadowFrame { .. }
            | Self::GuestRights { .. }
            | Self::LargerThanGuests { .. } => Invariant::Shadow,
            Self::NotOwned { .. } | Self::NotReached { .. } => Invariant::Ownership,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guest, root, address, path, violation } = self;
        write!(f, "guest {guest}, root {root}, {address}: {violation}")?;
        if let Some(step) = path.last() {
            let (level, index, table, entry) = (step.level, step.index, step.table, step.entry);
            write!(f, " (entry {entry:#x}, number {index} of the level {level} table {table:#x})")?;
        }
        Ok(())
    }
}
