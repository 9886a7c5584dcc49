//! KVM's entries: what it keeps in the bits that hardware leaves to software.
//!
//! | bits | meaning |
//! |---|---|
//! | 11 | MMU-present: the only reliable "present" |
//! | 53:52 | kind of accessed/dirty tracking: 0 flags on, 1 flags off |
//! | 57, 58 (EPT) or 9, 10 | host-writable, MMU-writable |
//!
//! Rule S1: W implies MMU-writable implies host-writable.

use memory_model::{Hpa, PageSize};

use crate::access::Rights;
use crate::error::Error;
use crate::format::{Attributes, Entry, Format, Kind, Role};

/// The software bits of an entry, for one format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpteBits {
    /// The entry is the MMU's and in use.
    pub mmu_present: u64,
    /// Hardware sets no flags in this entry (`SPTE_TDP_AD_DISABLED`).
    pub ad_disabled: u64,
    /// The host may write the page.
    pub host_writable: u64,
    /// The MMU may set W without asking anyone.
    pub mmu_writable: u64,
}

impl SpteBits {
    /// The bits KVM uses in that kind of table.
    pub const fn of(kind: Kind) -> Self {
        let (host_writable, mmu_writable) = match kind {
            Kind::Ept => (1 << 57, 1 << 58),
            _ => (1 << 9, 1 << 10),
        };
        Self { mmu_present: 1 << 11, ad_disabled: 1 << 52, host_writable, mmu_writable }
    }

    /// Whether the entry is in use.
    pub const fn is_present(&self, spte: u64) -> bool {
        spte & self.mmu_present != 0
    }
}

/// How far a page may be written: the three legal states of rule S1 that a direct MMU has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Writable {
    /// W set.
    Yes,
    /// Dirty logging waits for the first write.
    AfterLogging,
    /// The slot is read-only.
    NotInGuest,
    /// The host has it read-only.
    NotInHost,
}

/// Makes entries (`make_spte`, `make_nonleaf_spte`).
#[derive(Clone, Copy, Debug)]
pub(super) struct SpteMaker {
    pub format: Format,
    pub bits: SpteBits,
}

impl SpteMaker {
    pub fn new(format: Format) -> Self {
        Self { format, bits: SpteBits::of(format.kind()) }
    }

    /// A leaf for RAM, as after a fault: accessed, and dirty if it may be written.
    pub fn leaf(&self, size: PageSize, hpa: Hpa, writable: Writable) -> Result<u64, Error> {
        let SpteBits { host_writable, mmu_writable, .. } = self.bits;
        let kind = self.format.kind();
        let mut rights = Rights::READ | Rights::EXEC;
        if kind != Kind::Ept {
            rights |= Rights::USER;
        }
        let mut software = self.common() | self.format.marked(0, true, writable == Writable::Yes);
        software |= match writable {
            Writable::Yes | Writable::AfterLogging => host_writable | mmu_writable,
            Writable::NotInGuest => host_writable,
            Writable::NotInHost => 0,
        };
        if writable == Writable::Yes {
            rights |= Rights::WRITE;
        }
        self.format.leaf(size, hpa.raw(), Attributes { software, ..Attributes::ram(kind, rights) })
    }

    /// A pointer to a table.
    pub fn table(&self, table: u64) -> Result<u64, Error> {
        Ok(self.format.table(table)? | self.common() | self.format.marked(0, false, false))
    }

    fn common(&self) -> u64 {
        let ad_disabled = if self.format.has_accessed_dirty() { 0 } else { self.bits.ad_disabled };
        self.bits.mmu_present | ad_disabled
    }

    /// The leaf without W; MMU-writable stays, so that a logged write needs no slot look-up to get W back (rule D4).
    pub fn write_protected(&self, level: u8, spte: u64) -> u64 {
        spte & !self.format.bits(Role::Write, level, true)
    }

    /// What an entry in use is: the frame of a leaf, or the next table.
    pub fn target(&self, level: u8, spte: u64) -> Target {
        if !self.bits.is_present(spte) {
            return Target::Absent;
        }
        match self.format.decode(level, spte) {
            Entry::Table(table) => Target::Table(table),
            Entry::Leaf(frame, size) => Target::Leaf(Hpa(frame), size),
            Entry::Absent | Entry::Malformed(_) => Target::Absent,
        }
    }
}

/// What an entry of the MMU holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Absent,
    Table(u64),
    Leaf(Hpa, PageSize),
}
