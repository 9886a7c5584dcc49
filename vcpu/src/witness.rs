//! What a host can show of a running VM's inside, so that a translation can be compared with the truth.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant};

use ept::live::{LiveReport, Replay};
use ept::mmu::FaultOutcome;
use ept::{Caching, Format, Path, Rights};
use memory_model::{Gpa, Gva, Hpa, Hva, PageSize};

use crate::soft;

/// What was seen of something. Not being able to look is not the same as having seen nothing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Witness<T> {
    /// It is there, like this.
    Seen(T),
    /// It is not there.
    Absent,
    /// This host does not show it, and why.
    NotShown(Cow<'static, str>),
}

impl<T> From<Option<T>> for Witness<T> {
    fn from(seen: Option<T>) -> Self {
        seen.map_or(Self::Absent, Self::Seen)
    }
}

/// The end of a second-level walk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SecondLevelLeaf {
    /// Where the guest-physical address lies.
    pub hpa: Hpa,
    /// The size of the page that maps it.
    pub size: PageSize,
    /// What all entries on the way grant together.
    pub rights: Rights,
    /// Where the leaf entry lies.
    pub entry_address: Hpa,
    /// The leaf entry.
    pub entry: u64,
    /// Its accessed flag, where hardware sets it and nobody else clears it.
    pub accessed: Option<bool>,
    /// Its dirty flag, where hardware sets it.
    pub written: Option<bool>,
    /// All entries on the way, the root's first and the leaf last.
    pub path: Path,
}

/// The second-level tables of a VM as a whole.
#[derive(Clone, Copy, Debug)]
pub struct SecondLevelTables {
    /// The format of their entries.
    pub format: Format,
    /// They translate guest-virtual addresses: shadow paging.
    pub shadow: bool,
    /// Bytes of all tables.
    pub bytes: u64,
    /// Leaves of 4K, 2M and 1G.
    pub leaves: [u64; 3],
}

/// A second-level fault that the host has handled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FaultEvent {
    /// When it began.
    pub at: Instant,
    /// How long it took the host, if it tells.
    pub took: Option<Duration>,
    /// Whose access it was.
    pub vcpu: u32,
    /// The address of the access, if the host tells.
    pub gva: Option<Gva>,
    /// The address that had no entry, if the second level translates guest-physical ones.
    pub gpa: Option<Gpa>,
    /// What the access was to do.
    pub access: Rights,
    /// What came of it, if the host tells.
    pub outcome: Option<FaultOutcome>,
}

/// The faults of a recording, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FaultRecord {
    /// The first of them.
    pub events: Vec<FaultEvent>,
    /// How many more there were: they are not kept, or the host has not told where.
    pub unkept: u64,
    /// What else the host has told, and nobody has taken in time: some of it may be faults.
    pub lost: u64,
}

/// A page that the second level maps for a guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappedPage {
    /// Its first address.
    pub gpa: Gpa,
    /// Its size.
    pub size: PageSize,
    /// What all entries on the way grant together.
    pub rights: Rights,
    /// The memory type, as the leaf has it.
    pub caching: Caching,
}

/// What was found of all second-level tables of a VM.
#[derive(Clone, Debug)]
pub enum Verification {
    /// Of tables of this crate's own, and of what its processors remember.
    Soft(soft::Verification),
    /// Of KVM's, read from the kernel.
    Live(LiveReport),
}

impl Verification {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        match self {
            Self::Soft(found) => found.is_clean(),
            Self::Live(found) => found.is_clean(),
        }
    }

    /// What was found, a line each.
    pub fn findings(&self) -> Vec<String> {
        match self {
            Self::Soft(found) => found.findings().collect(),
            Self::Live(found) => found.lines().collect(),
        }
    }

    /// What the host has told of these tables and of faults, and cannot be compared with them: a line each.
    pub fn not_checked(&self) -> Vec<String> {
        match self {
            Self::Soft(_) => Vec::new(),
            Self::Live(found) => found.events.as_ref().map_or_else(Vec::new, Replay::not_checked),
        }
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Soft(found) => found.fmt(f),
            Self::Live(found) => found.fmt(f),
        }
    }
}

/// Why a shadow has no pages by guest-physical address.
pub(crate) const BY_GVA: &str = "shadow tables translate guest-virtual addresses";

/// The inside of a VM, as far as its host shows it.
pub trait HostView {
    /// The host-virtual address that the kernel's own memory slots give for `gpa`.
    fn slot_hva(&self, gpa: Gpa) -> Witness<Hva>;
    /// The frame behind a page of this process.
    fn frame(&self, hva: Hva) -> Witness<Hpa>;
    /// What the second-level table in use says of `gpa`; where that is a shadow table, of `gva`, as vCPU 0 translates
    /// it now. The guest's own tables lead from the one to the other.
    fn leaf(&self, gva: Gva, gpa: Gpa) -> Witness<SecondLevelLeaf>;
    /// Whether the second level is a shadow of the guest's own tables, as far as is known.
    fn is_shadow(&self) -> bool;
    /// Whether a ring's accesses go to the host's memory without a second-level leaf, as an interpreter's do.
    fn bypasses_tables(&self, ring: u8) -> bool;
    /// Second-level faults taken so far, where the host counts them.
    fn violations(&self) -> Option<u64>;
    /// All pages that the second level maps, lowest first, where it translates guest-physical addresses.
    fn mapped_pages(&self) -> Witness<Vec<MappedPage>>;
    /// Begins to record second-level faults, where the host can, before any vCPU runs; it costs nothing before that.
    fn record_faults(&self) {}
    /// The faults since [`record_faults`](Self::record_faults).
    fn faults(&self) -> Witness<FaultRecord> {
        Witness::NotShown("the host does not tell of single faults".into())
    }
    /// The second-level tables as a whole.
    fn tables(&self) -> Witness<SecondLevelTables>;
    /// What is wrong with all of the second-level tables, and with what processors remember of them.
    fn verification(&self) -> Witness<Verification>;
    /// From here on what becomes of this thread's VMs' leaves, and of those of threads that it makes, is recorded: then
    /// [`verification`](Self::verification) compares it with the leaves that there are. Before any vCPU runs.
    fn record(&self) -> Witness<()> {
        Witness::Absent
    }
    /// The same, as it is now: for who asks of many pages while nothing changes. `None` if each answer is cheap, or there is
    /// none.
    fn still(&self) -> Option<Box<dyn HostView + '_>> {
        None
    }
}
