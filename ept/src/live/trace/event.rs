//! The trace events that tell what becomes of leaves, and of faults; and their records' fields.

use alloc::vec::Vec;

use memory_model::{AddrRange, Hpa, Hva};

use super::fault::VcpuFault;
use super::record::Sample;
use super::tracefs::{Format, Tracefs};
use crate::format::MAX_LEVEL;
use crate::live::LiveError;
use crate::live::btf::Field;

/// What KVM has done at some time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Nanoseconds of the monotonic clock.
    pub time: u64,
    /// The thread that has done it.
    pub thread: u32,
    /// What was done.
    pub what: Happened,
}

/// What KVM tells of its tables, and of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Happened {
    /// A leaf was made or changed (`kvm_mmu_set_spte`).
    Installed {
        /// The first guest frame that it maps.
        gfn: u64,
        /// 1 to 3: of 4K, 2M, 1G.
        level: u8,
        /// The entry.
        spte: u64,
        /// Where the entry is.
        at: Hpa,
    },
    /// An entry of the TDP MMU is another one now (`kvm_tdp_mmu_spte_changed`).
    Changed {
        /// The first guest frame that it translates.
        gfn: u64,
        /// Its level.
        level: u8,
        /// The address space: 1 is that of system management mode.
        space: u8,
        /// What it was.
        old: u64,
        /// What it is.
        new: u64,
    },
    /// A table of the shadow MMU goes, with all that is in it (`kvm_mmu_prepare_zap_page`).
    TableZapped {
        /// The level of its entries.
        level: u8,
    },
    /// All tables of the shadow MMU go (`kvm_mmu_zap_all_fast`).
    AllZapped,
    /// A range of the process's memory is about to change: no leaf keeps what was behind it (`kvm_unmap_hva_range`).
    Unmapped(AddrRange<Hva>),
    /// A vCPU has left its guest by a fault (`kvm_page_fault`).
    Faulted(VcpuFault),
    /// The access was one to MMIO, as an entry of KVM's says (`check_mmio_spte`).
    MmioChecked {
        /// Slots have changed since the entry was made: it says nothing (rule I2).
        stale: bool,
    },
}

/// Events that each kernel has: without them leaves and faults cannot be told.
const REQUIRED: [&str; 3] = ["kvmmmu/kvm_mmu_set_spte", "kvm/kvm_page_fault", "kvmmmu/check_mmio_spte"];

/// The formats of the events that this kernel has.
pub(super) struct Kinds(Vec<Kind>);

/// An event's format, and what its record, as the fields that are named for it, means.
struct Kind {
    format: Format,
    fields: Vec<Field>,
    means: fn(&[u64]) -> Option<Happened>,
}

/// The events, the fields that are needed of each, and what they mean.
type Row = (&'static str, &'static [&'static str], fn(&[u64]) -> Option<Happened>);
const ROWS: [Row; 7] = [
    (REQUIRED[0], &["gfn", "level", "spte", "sptep"], |of| {
        let level = level(of[1])?;
        Some(Happened::Installed { gfn: of[0], level, spte: of[2], at: Hpa(of[3]) })
    }),
    ("kvmmmu/kvm_tdp_mmu_spte_changed", &["gfn", "level", "as_id", "old_spte", "new_spte"], |of| {
        let (level, space) = (level(of[1])?, of[2] as u8);
        Some(Happened::Changed { gfn: of[0], level, space, old: of[3], new: of[4] })
    }),
    ("kvmmmu/kvm_mmu_prepare_zap_page", &["role"], |of| {
        Some(Happened::TableZapped { level: of[0] as u8 & 0xf })
    }),
    ("kvmmmu/kvm_mmu_zap_all_fast", &[], |_| Some(Happened::AllZapped)),
    ("kvm/kvm_unmap_hva_range", &["start", "end"], |of| {
        let bytes = of[1].checked_sub(of[0])?;
        AddrRange::new(Hva(of[0]), bytes.into()).map(Happened::Unmapped)
    }),
    (REQUIRED[1], &["vcpu_id", "guest_rip", "fault_address", "error_code"], |of| {
        let vcpu = of[0] as u32;
        Some(Happened::Faulted(VcpuFault { vcpu, rip: of[1], address: of[2], code: of[3] }))
    }),
    (REQUIRED[2], &["kvm_gen", "spte_gen"], |of| Some(Happened::MmioChecked { stale: of[0] != of[1] })),
];

/// A level that tables have.
fn level(number: u64) -> Option<u8> {
    u8::try_from(number).ok().filter(|&level| (1..=MAX_LEVEL).contains(&usize::from(level)))
}

impl Kinds {
    /// Those that this kernel has.
    pub fn of(tracefs: &Tracefs) -> Result<Self, LiveError> {
        let mut kinds = Vec::new();
        for (event, names, means) in ROWS {
            let Some(format) = tracefs.format(event)? else {
                if REQUIRED.contains(&event) {
                    return Err(LiveError::NoEvent { event, field: names[0] });
                }
                continue;
            };
            let field = |&field| format.field(field).ok_or(LiveError::NoEvent { event, field });
            let fields = names.iter().map(field).collect::<Result<_, _>>()?;
            kinds.push(Kind { format, fields, means });
        }
        Ok(Self(kinds))
    }

    /// The events' numbers.
    pub fn ids(&self) -> impl Iterator<Item = u16> {
        self.0.iter().map(|kind| kind.format.id)
    }

    pub fn event(&self, sample: &Sample<'_>) -> Option<Event> {
        let id = sample.event()?;
        let kind = self.0.iter().find(|kind| kind.format.id == id)?;
        let values: Option<Vec<u64>> = kind.fields.iter().map(|&field| sample.get(field)).collect();
        Some(Event { time: sample.time, thread: sample.thread, what: (kind.means)(&values?)? })
    }
}
