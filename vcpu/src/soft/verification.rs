//! A look at all that a VM's MMU and its processors hold.

use std::fmt;

use ept::mmu::{self, Tdp};
use ept::verify::{DirtyLog, Guest, Policy, Report, Shadow, Slot, verify};
use ept::{Flags, Kind, translate, try_guest_table};
use memory_model::{Gpa, Gva, Hpa};
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
    /// What it remembers.
    pub what: Remembered,
    /// Where the processor would go.
    pub remembered: Hpa,
    /// Where the tables lead now, if they allow the access.
    pub present: Option<Hpa>,
}

/// What a processor remembers the place of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remembered {
    /// A page, as the guest sees it.
    Page(Gva),
    /// A table of the guest's.
    Table(Gpa),
}

impl fmt::Display for Remembered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(gva) => write!(f, "GVA {gva}"),
            Self::Table(gpa) => write!(f, "the guest's table, GPA {gpa},"),
        }
    }
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
        let Self { vcpu, what, remembered, present } = self;
        write!(f, "vCPU {vcpu} remembers {what} at {remembered}, ")?;
        match present {
            Some(present) => write!(f, "it is at {present}"),
            None => write!(f, "the tables do not allow that"),
        }
    }
}

impl SoftKernel {
    /// Verifies all tables of the MMU, and all that the processors remember of them. No vCPU runs.
    pub fn verify(&self) -> Result<Verification, ept::Error> {
        let tables = match &self.mmu {
            SoftMmu::Tdp(tdp) => self.verify_tdp(tdp)?,
            SoftMmu::Shadow(shadow) => self.verify_shadow(shadow)?,
        };
        let vcpus = (0..).zip(&self.vcpus);
        let stale = vcpus.flat_map(|(vcpu, arch)| self.stale(vcpu, arch)).collect();
        Ok(Verification { tables, stale })
    }

    fn verify_tdp(&self, tdp: &Tdp) -> Result<Report, ept::Error> {
        let format = tdp.paging().format;
        let flags = format.has_accessed_dirty();
        let logs = self.logs();
        let tables: Vec<Hpa> = tdp.pages(&self.host)?.iter().map(|page| page.table).collect();
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

    /// The roots that processors use, against the guest's tables as they are. Tables that wait for one of the guest's other
    /// address spaces to come back are not reached.
    fn verify_shadow(&self, shadow: &mmu::Shadow) -> Result<Report, ept::Error> {
        let (logs, unsync) = (self.logs(), shadow.unsync_tables().collect::<Vec<_>>());
        let mut shadows: Vec<Shadow<'_>> = Vec::new();
        for context in self.vcpus.iter().filter_map(|arch| arch.shadow.as_ref()) {
            let paging = *context.paging();
            let known = shadows.iter().any(|shadow| shadow.paging.root == paging.root);
            if let Some(&guest) = context.guest().filter(|_| !known) {
                shadows.push(Shadow { paging, guest, unsync: &unsync });
            }
        }
        let guest = Guest {
            process: 0,
            roots: &[],
            shadows: &shadows,
            slots: &slots(&logs),
            host: &self.host,
            policy: Policy::kvm(Kind::Ia32e),
            leaves: None,
            tables: None,
            caches: None,
        };
        verify(&self.host, &[guest], self.host.span(), LISTED)
    }

    /// The slots, each with its log as far as that is known.
    fn logs(&self) -> Vec<(ept::mmu::Memslot, Log)> {
        let log = |slot: &slot_manager::Memslot| match self.memslots.peek_dirty_log(slot.id()) {
            _ if self.dirty_bits && slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES) => Log::Pml,
            Some(bitmap) => Log::Bitmap(bitmap),
            None => Log::Unknown,
        };
        self.memslots.slots().iter().map(|slot| (memslot(slot), log(slot))).collect()
    }

    /// What a processor would use, and the tables do not give. Changes that the guest has made to its own tables do not
    /// count: those it may remember.
    fn stale(&self, vcpu: u32, arch: &VcpuArch) -> impl Iterator<Item = StaleUse> {
        let pages = arch.tlb.iter(self.flushes()).map(move |(of, page)| {
            let present = self.present(arch, of, page);
            StaleUse { vcpu, what: Remembered::Page(of.gva()), remembered: page.hpa, present }
        });
        let tables = arch.tables.iter(self.flushes()).map(move |(gpa, hpa)| {
            let present = self.table(gpa);
            StaleUse { vcpu, what: Remembered::Table(gpa), remembered: hpa, present }
        });
        pages.chain(tables).filter(|remembered| remembered.present != Some(remembered.remembered))
    }

    /// Where the second level leads for a walk of the guest's tables.
    fn table(&self, gpa: Gpa) -> Option<Hpa> {
        let SoftMmu::Tdp(tdp) = &self.mmu else { return None };
        let leaf = try_guest_table(&self.host, tdp.paging(), gpa, Flags::Set)?;
        Some(Hpa(leaf.address))
    }

    /// Where the MMU's tables lead for a use that a processor remembers.
    fn present(&self, arch: &VcpuArch, of: Use, page: Page) -> Option<Hpa> {
        let access = access_of(of.kind(), of.user(), of.ac());
        let (paging, access) = match &self.mmu {
            SoftMmu::Tdp(tdp) => (tdp.paging(), access.by_user()),
            SoftMmu::Shadow(_) => (arch.shadow.as_ref()?.paging(), access),
        };
        let leaf = translate(&self.host, paging, page.input, access, Flags::Keep).ok()?;
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
