//! KVM's entries: what it keeps in the bits that hardware leaves to software.
//!
//! | bits | meaning |
//! |---|---|
//! | 11 | MMU-present: the only reliable "present" |
//! | 53:52 | kind of accessed/dirty tracking: 0 flags on, 1 flags off |
//! | 54, 56 | R and X, put away for access tracking |
//! | 55 | of a leaf: its writes are logged by D |
//! | 57, 58 (EPT) or 9, 10 | host-writable, MMU-writable |
//! | 59 | of a pointer: the table is there because a large page may not be executed |
//!
//! Rule S1: W implies MMU-writable implies host-writable. Bits 55 and 59 are this crate's own; KVM has the latter in
//! `kvm_mmu_page`, and a buffer in the processor for the former. An entry that translates nothing is zero, [`FROZEN`], or
//! one for MMIO (see `mmio`).

use memory_model::{Hpa, PageSize};

use crate::access::{Access, Controls, Rights};
use crate::error::Error;
use crate::format::{Attributes, Format, Kind, Role};

/// Another processor is at the table that this entry is in, and about to free it (`FROZEN_SPTE`).
pub(super) const FROZEN: u64 = 1 << 63 | 0x5a0;

/// The software bits of an entry, for one format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpteBits {
    /// The entry is the MMU's and in use.
    pub mmu_present: u64,
    /// Hardware sets no flags in this entry (`SPTE_TDP_AD_DISABLED`).
    pub ad_disabled: u64,
    /// R and X of a page whose next access is awaited (rule D3).
    pub saved: u64,
    /// The slot's log is kept by D, which must not be lost.
    pub logged: u64,
    /// The host may write the page.
    pub host_writable: u64,
    /// The MMU may set W without asking anyone.
    pub mmu_writable: u64,
    /// Of a pointer: no large page may take the place of the table (`nx_huge_page_disallowed`).
    pub huge_disallowed: u64,
}

impl SpteBits {
    /// The bits KVM uses in that kind of table.
    pub const fn of(kind: Kind) -> Self {
        let (host_writable, mmu_writable) = match kind {
            Kind::Ept => (1 << 57, 1 << 58),
            _ => (1 << 9, 1 << 10),
        };
        Self {
            mmu_present: 1 << 11,
            ad_disabled: 1 << 52,
            saved: 1 << 54 | 1 << 56,
            logged: 1 << 55,
            host_writable,
            mmu_writable,
            huge_disallowed: 1 << 59,
        }
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

/// What an entry of the MMU holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    Absent,
    Table(u64),
    Leaf(Hpa, PageSize),
}

/// Makes and changes entries (`make_spte`, `make_nonleaf_spte`).
#[derive(Clone, Copy, Debug)]
pub(super) struct SpteMaker {
    pub format: Format,
    pub bits: SpteBits,
    /// By level: a readable and executable leaf for frame 0, accessed; zero where there are no leaves.
    leaves: [u64; 4],
    /// A pointer to a table at 0.
    table: u64,
    /// W, D and A; no A and D where hardware sets none.
    pub write: u64,
    pub dirty: u64,
    accessed: u64,
    /// X, or what is set to withhold it.
    execute: u64,
    no_execute: u64,
    user: u64,
    /// R and X of formats without A: what rule D3 takes away, with W.
    tracked: u64,
}

/// From R and X to where rule D3 puts them.
const SAVED_SHIFT: u32 = 54;

impl SpteMaker {
    pub fn new(format: Format) -> Self {
        let kind = format.kind();
        let bits = SpteBits::of(kind);
        let accessed = format.flags(false, false);
        let common = bits.mmu_present | if accessed == 0 { bits.ad_disabled } else { 0 };
        let mut rights = Rights::READ | Rights::EXEC;
        if kind != Kind::Ept {
            rights |= Rights::USER;
        }
        let page = Attributes { software: common | accessed, ..Attributes::ram(kind, rights) };
        let leaf = |level| format.leaf(PageSize::of_level(level)?, 0, page).ok();
        let [execute, read] = [Role::Execute, Role::Read].map(|role| format.bits(role, 1, true));
        Self {
            format,
            bits,
            leaves: [0, 1, 2, 3].map(|level| leaf(level).unwrap_or(0)),
            table: format.table(0).unwrap_or(0) | common | accessed,
            write: format.bits(Role::Write, 1, true),
            dirty: format.flags(true, true) & !accessed,
            accessed,
            execute,
            no_execute: format.bits(Role::NoExecute, 1, true),
            user: format.bits(Role::User, 1, true),
            tracked: if accessed == 0 { read | execute } else { 0 },
        }
    }

    /// A leaf for RAM, as after a fault: accessed, and dirty if it may be written.
    #[inline]
    pub fn leaf(&self, size: PageSize, hpa: Hpa, writable: Writable) -> Result<u64, Error> {
        let SpteBits { host_writable, mmu_writable, .. } = self.bits;
        let leaf = self.leaves[size.level() as usize];
        if leaf == 0 || !hpa.is_aligned(size) || hpa.raw() > self.format.max_phy_addr().last() {
            return self.refuse_leaf(size, hpa);
        }
        let bits = match writable {
            Writable::Yes => host_writable | mmu_writable | self.write | self.dirty,
            Writable::AfterLogging => host_writable | mmu_writable,
            Writable::NotInGuest => host_writable,
            Writable::NotInHost => 0,
        };
        Ok(leaf | hpa.raw() | bits)
    }

    /// Why there is no such leaf.
    #[cold]
    fn refuse_leaf(&self, size: PageSize, hpa: Hpa) -> Result<u64, Error> {
        self.format.leaf(size, hpa.raw(), Attributes::ram(self.format.kind(), Rights::READ))
    }

    /// A pointer to a table.
    #[inline]
    pub fn table(&self, table: u64) -> Result<u64, Error> {
        match table & !(self.format.max_phy_addr().last() & Format::FRAME) {
            0 => Ok(self.table | table),
            _ => self.format.table(table),
        }
    }

    /// The leaf without W; MMU-writable stays, so that a logged write needs no slot look-up to get W back (rule D4).
    pub fn write_protected(&self, spte: u64) -> u64 {
        spte & !self.write
    }

    /// The entry, which no guest can execute.
    pub fn without_exec(&self, spte: u64) -> u64 {
        spte & !self.execute | self.no_execute
    }

    /// The entry, which is the supervisor's alone.
    pub fn without_user(&self, spte: u64) -> u64 {
        spte & !self.user
    }

    /// The entry, which guests can execute (`make_spte_executable`).
    pub fn with_exec(&self, spte: u64) -> u64 {
        spte & !self.no_execute | self.execute
    }

    /// The first of the smaller leaves that take the place of a large one at `level`. The others follow in steps of
    /// their size.
    pub fn first_piece(&self, level: u8, spte: u64) -> u64 {
        self.format.split(level, spte, 0)
    }

    /// Whether a leaf in use grants the access (`is_access_allowed`).
    #[inline]
    pub fn allows(&self, spte: u64, access: Access) -> bool {
        let granted = self.format.granted(self.format.mergeable(spte), spte);
        let readable = self.format.is_present(spte);
        readable && self.format.demand(access, Controls::empty()).is_met(granted)
    }

    /// What an entry is. Tables are the MMU's own, so that bit 11 and PS tell all of it.
    #[inline]
    pub fn target(&self, level: u8, spte: u64) -> Target {
        const PAGE_SIZE: u64 = 1 << 7;
        match PageSize::of_level(level) {
            _ if !self.bits.is_present(spte) => Target::Absent,
            Some(size) if level == 1 || spte & PAGE_SIZE != 0 => {
                Target::Leaf(Hpa(spte & Format::FRAME & !(size.bytes() - 1)), size)
            }
            _ => Target::Table(spte & Format::FRAME),
        }
    }
}

/// Rule D3: which pages were accessed.
impl SpteMaker {
    /// Whether the leaf waits for an access without A: hardware finds no right in it (`is_access_track_spte`).
    fn is_tracked(&self, spte: u64) -> bool {
        self.tracked != 0 && spte & self.tracked == 0
    }

    /// Whether the page was accessed since it was last aged (`is_accessed_spte`).
    pub fn is_young(&self, spte: u64) -> bool {
        if self.accessed != 0 { spte & self.accessed != 0 } else { !self.is_tracked(spte) }
    }

    /// The leaf, from now on not accessed (`mark_spte_for_access_track`). W goes too: MMU-writable remembers it.
    pub fn aged(&self, spte: u64) -> u64 {
        if self.accessed != 0 {
            return spte & !self.accessed;
        }
        if self.is_tracked(spte) {
            return spte;
        }
        spte & !(self.tracked | self.write) | (spte & self.tracked) << SAVED_SHIFT
    }

    /// The leaf with its rights, but for W, back in place (`restore_acc_track_spte`).
    #[inline]
    pub fn restored(&self, spte: u64) -> u64 {
        match self.is_tracked(spte) {
            true => spte & !self.bits.saved | spte >> SAVED_SHIFT & self.tracked,
            false => spte,
        }
    }
}
