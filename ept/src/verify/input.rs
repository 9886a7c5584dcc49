//! What a verifier is told: the roots, what should lie behind them, and by which policy.

use core::fmt;

use memory_model::{Gpa, Hpa};

use super::host::HostMap;
use crate::format::{Caching, Kind, MemoryType};
use crate::mmu::Memslot;
use crate::paging::Paging;
use crate::tlb::{Mapped, Tlb};

/// One guest-physical address space: the tables that translate it, and what they should say.
///
/// A VM with two of them (system management mode) is two of these with the same `process`.
#[derive(Clone, Copy)]
pub struct Guest<'a> {
    /// Whose HVAs its slots mean. Two slots of one process may map the same HVA; then two leaves share a frame.
    pub process: u32,
    /// Its second-level tables. A hypervisor may keep several for one address space.
    pub roots: &'a [Paging],
    /// Its shadow tables. In findings they are numbered after its roots.
    pub shadows: &'a [Shadow<'a>],
    /// Its slots, in any order.
    pub slots: &'a [Slot<'a>],
    /// From HVA to HPA.
    pub host: &'a dyn HostMap,
    /// What is left open by the architecture, and is to be alike everywhere.
    pub policy: Policy<'a>,
    /// How many leaves of 4K, 2M and 1G there should be (KVM's `pages_4k`, `pages_2m`, `pages_1g`).
    pub leaves: Option<[u64; 3]>,
    /// The frames of its tables, as their owner lists them.
    pub tables: Option<&'a [Hpa]>,
    /// What its processors remember. All flushes have been made.
    pub caches: Option<&'a [Caches<'a>]>,
}

impl fmt::Debug for Guest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { process, roots, shadows, slots, .. } = self;
        f.debug_struct("Guest")
            .field("process", process)
            .field("roots", roots)
            .field("shadows", shadows)
            .field("slots", slots)
            .finish_non_exhaustive()
    }
}

/// Tables from linear addresses straight to the host's, made from the guest's own tables and its slots.
#[derive(Clone, Copy, Debug)]
pub struct Shadow<'a> {
    /// The shadow tables.
    pub paging: Paging,
    /// The guest's own tables, which lie in its memory.
    pub guest: Paging,
    /// Tables of the guest that it may write, so that their shadow may lag behind (`kvm_mmu_page.unsync`): what is below
    /// them is not checked.
    pub unsync: &'a [Gpa],
}

/// What one processor remembers.
#[derive(Clone, Copy, Debug)]
pub struct Caches<'a> {
    /// Its translation caches.
    pub tlb: &'a Tlb,
    /// The address spaces it has been in, and the tables that translate them.
    pub spaces: &'a [Mapped],
}

/// A slot, and what is known of its dirty log.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    /// Where it lies and what it allows.
    pub memslot: Memslot,
    /// How its writes are logged; counts only with [`Memslot::log_dirty`].
    pub log: DirtyLog<'a>,
}

impl From<Memslot> for Slot<'_> {
    fn from(memslot: Memslot) -> Self {
        Self { memslot, log: DirtyLog::Unknown }
    }
}

/// How writes to a slot get into its log.
#[derive(Clone, Copy, Debug)]
pub enum DirtyLog<'a> {
    /// Not known: writable leaves are not checked against it.
    Unknown,
    /// The processor logs when it sets D (page-modification logging): any leaf may be writable.
    Pml,
    /// By write protection. Bit `n % 64` of word `n / 64` is set if page `n` of the slot is in the log; pages past the
    /// end are not. Only those may be writable.
    Bitmap(&'a [u64]),
}

/// What the architecture leaves open.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// The kind of memory of leaves for RAM.
    pub ram: Caching,
    /// The kind of memory of leaves for devices.
    pub device: Caching,
    /// Pointers to tables grant everything, so that leaves alone decide.
    pub tables_grant_all: bool,
    /// Hardware alone writes A and D, so that D implies A.
    pub dirty_implies_accessed: bool,
    /// Bits set in every present entry, which are no part of an address: the C-bit of encrypted memory.
    pub encryption: u64,
    /// What entries that translate nothing may hold besides zero.
    pub software: &'a [Encoding],
}

/// Entries that mean something to software only: those whose bits under `mask` are `value`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Encoding {
    /// The bits that matter.
    pub mask: u64,
    /// Their values.
    pub value: u64,
}

impl Policy<'static> {
    /// RAM is write back, tables grant everything, D implies A, and what translates nothing is zero.
    pub const fn strict(kind: Kind) -> Self {
        let (ram, device) = match kind {
            Kind::Ept => {
                (Caching::EPT_RAM, Caching::Ept { memory_type: MemoryType::Uncacheable, ignore_pat: false })
            }
            // PAT entries 0 and 3 are WB and UC after reset.
            _ => (Caching::PAT_RAM, Caching::Pat(3)),
        };
        Self {
            ram,
            device,
            tables_grant_all: true,
            dirty_implies_accessed: true,
            encryption: 0,
            software: &[],
        }
    }

    /// As KVM keeps its tables: prefetched leaves have D without A (rule S4), and some entries mean something to it
    /// alone.
    pub const fn kvm(kind: Kind) -> Self {
        let software: &[Encoding] = match kind {
            Kind::Ept => &KVM_EPT,
            _ => &KVM_X86,
        };
        Self { dirty_implies_accessed: false, software, ..Self::strict(kind) }
    }
}

/// KVM's MMU-present bit.
const MMU_PRESENT: u64 = 1 << 11;
/// The value of entries without a page, and the one that says another processor is at it (`FROZEN_SPTE`).
const NONPRESENT: Encoding = Encoding { mask: u64::MAX, value: 1 << 63 };
const FROZEN: Encoding = Encoding { mask: !(1 << 63), value: 0x5a0 };

/// Rules D3 (R and X put away for access tracking) and I1 (MMIO: W and X without R).
const KVM_EPT: [Encoding; 4] = [
    NONPRESENT,
    FROZEN,
    Encoding { mask: MMU_PRESENT | 0x7, value: MMU_PRESENT },
    Encoding { mask: MMU_PRESENT | 0x7, value: 0x6 },
];

/// Rule I1: MMIO has P and a reserved bit.
const KVM_X86: [Encoding; 3] =
    [NONPRESENT, FROZEN, Encoding { mask: 1 << 51 | MMU_PRESENT | 0x1, value: 1 << 51 | 0x1 }];
