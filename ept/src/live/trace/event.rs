//! The trace events that tell what becomes of leaves, and of faults; and their records' fields.

use alloc::vec::Vec;
use core::ffi::CStr;

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
    /// An entry of the TDP MMU that was present is another one now (`kvm_tdp_mmu_spte_changed`).
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

/// The formats of the events that this kernel has.
pub(super) struct Kinds(Vec<Kind>);

/// An event of the table, and its format in this kernel.
struct Kind {
    row: &'static Row,
    format: Format,
    fields: Vec<Field>,
}

/// An event, and what its record means.
struct Row {
    event: &'static str,
    /// Each kernel has it: without it leaves or faults cannot be told.
    required: bool,
    /// The condition under which it is recorded, if there is one.
    only: Option<&'static CStr>,
    /// The fields that are needed of it.
    fields: &'static [&'static str],
    /// What these fields say.
    means: fn(&[u64]) -> Option<Happened>,
}

static ROWS: [Row; 7] = [
    Row {
        event: "kvmmmu/kvm_mmu_set_spte",
        required: true,
        only: None,
        fields: &["gfn", "level", "spte", "sptep"],
        means: |of| {
            let level = level(of[1])?;
            Some(Happened::Installed { gfn: of[0], level, spte: of[2], at: Hpa(of[3]) })
        },
    },
    Row {
        event: "kvmmmu/kvm_tdp_mmu_spte_changed",
        required: false,
        // A table that goes is told of 512 times: once for each entry, though nearly all were empty. One that hardware could use
        // has one of its three lowest bits set, in any format.
        only: Some(c"old_spte & 7"),
        fields: &["gfn", "level", "as_id", "old_spte", "new_spte"],
        means: |of| {
            let (level, space) = (level(of[1])?, of[2] as u8);
            Some(Happened::Changed { gfn: of[0], level, space, old: of[3], new: of[4] })
        },
    },
    Row {
        event: "kvmmmu/kvm_mmu_prepare_zap_page",
        required: false,
        only: None,
        fields: &["role"],
        means: |of| Some(Happened::TableZapped { level: of[0] as u8 & 0xf }),
    },
    Row {
        event: "kvmmmu/kvm_mmu_zap_all_fast",
        required: false,
        only: None,
        fields: &[],
        means: |_| Some(Happened::AllZapped),
    },
    Row {
        event: "kvm/kvm_unmap_hva_range",
        required: false,
        only: None,
        fields: &["start", "end"],
        means: |of| {
            let bytes = of[1].checked_sub(of[0])?;
            AddrRange::new(Hva(of[0]), bytes.into()).map(Happened::Unmapped)
        },
    },
    Row {
        event: "kvm/kvm_page_fault",
        required: true,
        only: None,
        fields: &["vcpu_id", "guest_rip", "fault_address", "error_code"],
        means: |of| {
            let vcpu = of[0] as u32;
            Some(Happened::Faulted(VcpuFault { vcpu, rip: of[1], address: of[2], code: of[3] }))
        },
    },
    Row {
        event: "kvmmmu/check_mmio_spte",
        required: true,
        only: None,
        fields: &["kvm_gen", "spte_gen"],
        means: |of| Some(Happened::MmioChecked { stale: of[0] != of[1] }),
    },
];

/// A level that tables have.
fn level(number: u64) -> Option<u8> {
    u8::try_from(number).ok().filter(|&level| (1..=MAX_LEVEL).contains(&usize::from(level)))
}

impl Kinds {
    /// Those that this kernel has.
    pub fn of(tracefs: &Tracefs) -> Result<Self, LiveError> {
        let mut kinds = Vec::new();
        for row in &ROWS {
            let Row { event, fields, .. } = *row;
            let Some(format) = tracefs.format(event)? else {
                if row.required {
                    return Err(LiveError::NoEvent { event, field: fields[0] });
                }
                continue;
            };
            let field = |&field| format.field(field).ok_or(LiveError::NoEvent { event, field });
            let fields = fields.iter().map(field).collect::<Result<_, _>>()?;
            kinds.push(Kind { row, format, fields });
        }
        Ok(Self(kinds))
    }

    /// The events' numbers, and under which conditions they are recorded.
    pub fn watched(&self) -> impl Iterator<Item = (u16, Option<&'static CStr>)> {
        self.0.iter().map(|kind| (kind.format.id, kind.row.only))
    }

    pub fn event(&self, sample: &Sample<'_>) -> Option<Event> {
        let id = sample.event()?;
        let kind = self.0.iter().find(|kind| kind.format.id == id)?;
        let values: Option<Vec<u64>> = kind.fields.iter().map(|&field| sample.get(field)).collect();
        Some(Event { time: sample.time, thread: sample.thread, what: (kind.row.means)(&values?)? })
    }
}
