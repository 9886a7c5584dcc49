//! A look at all that a VM's MMU and its processors hold.

use std::fmt;

use ept::mmu::Tdp;
use ept::verify::{DirtyLog, Guest, Policy, Report, Slot, verify};
use ept::{Flags, Paging, translate};
use memory_model::{Gva, Hpa};
use slot_manager::{SlotFlags, SlotRecord};

use super::kernel::{SoftKernel, VcpuArch, memslot};
use super::mmu::access_of;
use super::second_level::SoftMmu;
use super::tlb::{Page, Use};

/// Findings that are listed; all are counted.
const LISTED: usize = 64;

/// What was found of a VM's second-level tables, and of what its processors remember of them.
#[derive(Clone, Debug)]
pub struct Verification {
    /// The tables, against the slots and the host.
    pub tables: Report,
    /// What a processor would use although the tables no longer allow it.
    pub stale: Vec<StaleUse>,
}

/// A translation that a processor should have forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaleUse {
    /// The processor.
    pub vcpu: u32,
    /// The page, as the guest sees it.
    pub gva: Gva,
    /// Where the processor would go.
    pub remembered: Hpa,
    /// Where the tables lead now, if they allow the access.
    pub present: Option<Hpa>,
}

impl Verification {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.tables.is_clean() && self.stale.is_empty()
    }

    /// What was found, a line each.
    pub fn findings(&self) -> impl Iterator<Item = String> {
        let tables = self.tables.findings.iter().map(ToString::to_string);
        tables.chain(self.stale.iter().map(ToString::to_string))
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tables.fmt(f)?;
        self.stale.iter().try_for_each(|stale| writeln!(f, "{stale}"))
    }
}

impl fmt::Display for StaleUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vcpu, gva, remembered, present } = self;
        write!(f, "vCPU {vcpu} remembers GVA {gva} at {remembered}, ")?;
        match present {
            Some(present) => write!(f, "it is at {present}"),
            None => write!(f, "the tables do not allow that"),
        }
    }
}

impl SoftKernel {
    /// Verifies all tables of the MMU, and all that the processors remember of them. No vCPU runs.
    pub fn verify(&self) -> Result<Verification, ept::Error> {
        let SoftMmu::Tdp(tdp) = &self.mmu;
        let tables = self.verify_tdp(tdp)?;
        let vcpus = (0..).zip(self.vcpus());
        let stale = vcpus.flat_map(|(vcpu, arch)| self.stale(vcpu, arch)).collect();
        Ok(Verification { tables, stale })
    }

    fn verify_tdp(&self, tdp: &Tdp) -> Result<Report, ept::Error> {
        let format = tdp.paging().format;
        let flags = format.has_accessed_dirty();
        let logs = self.logs(self.dirty_bits && flags);
        let tables: Vec<Hpa> = tdp.shadow_pages(&self.host)?.iter().map(|page| page.table).collect();
        let stats = tdp.stats();
        let guest = Guest {
            process: 0,
            roots: &[*tdp.paging()],
            shadows: &[],
            slots: &slots(&logs),
            host: &self.host,
            policy: Policy::kvm(format.kind()),
            // Pages whose access is tracked without A are leaves to KVM, and none to hardware.
            leaves: flags.then_some([stats.pages_4k, stats.pages_2m, stats.pages_1g]),
            tables: Some(&tables),
            caches: None,
        };
        verify(&self.host, &[guest], self.host.span(), LISTED)
    }

    /// The slots, each with its log as far as that is known.
    fn logs(&self, by_flags: bool) -> Vec<(ept::mmu::Memslot, Log)> {
        let log = |slot: &slot_manager::Memslot| match self.memslots.peek_dirty_log(slot.id()) {
            _ if by_flags && slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES) => Log::Pml,
            Some(bitmap) => Log::Bitmap(bitmap),
            None => Log::Unknown,
        };
        self.memslots.slots().iter().map(|slot| (memslot(slot), log(slot))).collect()
    }

    /// What a processor would use, and the tables do not give. Changes that the guest has made to its own tables do not
    /// count: those it may remember.
    fn stale(&self, vcpu: u32, arch: &VcpuArch) -> impl Iterator<Item = StaleUse> {
        arch.tlb.iter(self.flushes()).filter_map(move |(of, page)| {
            let present = self.present(of, page);
            let stale = StaleUse { vcpu, gva: of.gva(), remembered: page.hpa, present };
            (present != Some(page.hpa)).then_some(stale)
        })
    }

    /// Where the tables lead for a use that a processor remembers.
    fn present(&self, of: Use, page: Page) -> Option<Hpa> {
        let SoftMmu::Tdp(tdp) = &self.mmu;
        let paging: &Paging = tdp.paging();
        let access = access_of(of.kind(), of.user(), of.ac());
        let leaf = translate(&self.host, paging, page.gpa.raw(), access.by_user(), Flags::Keep).ok()?;
        Some(Hpa(leaf.address))
    }
}

/// How a slot's writes are known.
enum Log {
    Unknown,
    Pml,
    Bitmap(Vec<u64>),
}

impl Log {
    fn as_dirty_log(&self) -> DirtyLog<'_> {
        match self {
            Self::Unknown => DirtyLog::Unknown,
            Self::Pml => DirtyLog::Pml,
            Self::Bitmap(bitmap) => DirtyLog::Bitmap(bitmap),
        }
    }
}

fn slots(logs: &[(ept::mmu::Memslot, Log)]) -> Vec<Slot<'_>> {
    logs.iter().map(|(memslot, log)| Slot { memslot: *memslot, log: log.as_dirty_log() }).collect()
}
