//! A frame goes into the tree (`kvm_tdp_mmu_map`), beside other processors that do the same.
//!
//! Entries change by compare-and-exchange. Who loses a race frees the table that it would have linked, and looks again.
//! A table that a large page replaces is unlinked first; then its entries are frozen one by one, so that whoever came to
//! it just before finds no entry to change, and it is freed.

use memory_model::{AddrRange, Gpa, PageSize};

use super::Tdp;
use super::counters::Count;
use super::zap::Gone;
use crate::error::Error;
use crate::mmu::level::mapping_size;
use crate::mmu::spte::{FROZEN, Target, Writable};
use crate::mmu::{FaultOutcome, Faultin, HostFrames, Memslots, PageFault, SlotLookup};

/// A leaf that is wanted.
struct Wanted<'a> {
    fault: &'a PageFault,
    faultin: &'a Faultin,
    writable: Writable,
    /// The largest page that could be; with `exec`, it may not be executed, and the page is small for that (rule L5).
    size: PageSize,
    exec: bool,
}

impl Tdp {
    /// Steps 7 and 8, with what steps 5 and 6 ([`PageFault::resolve`]) came to: installs the page, unless what was looked
    /// up is stale. With no frame left for a table, or no more tables allowed, the tree stays as it is but for tables
    /// without a page: see [`reclaim`](Self::reclaim).
    pub fn map(
        &self,
        fault: &PageFault,
        resolved: Result<Faultin, FaultOutcome>,
        slots: &impl Memslots,
        host: &impl HostFrames,
    ) -> Result<FaultOutcome, Error> {
        // What the tables cannot map is emulated, as in `fast`.
        let translates = self.paging.format.translates(fault.gpa.raw());
        let outcome = match resolved {
            Ok(_) if !translates => FaultOutcome::Mmio { gpa: fault.gpa },
            Ok(faultin) => self.map_frame(fault, &faultin, slots, host)?,
            Err(outcome @ FaultOutcome::Mmio { .. }) if translates => match self.map_mmio(fault.gpa, slots, host) {
                // It would only have been faster.
                Ok(()) | Err(Error::OutOfTables) => outcome,
                Err(error) => return Err(error),
            },
            Err(outcome) => outcome,
        };
        let count = match outcome {
            FaultOutcome::Fixed { .. } => Count::Fixed,
            FaultOutcome::Spurious => Count::Spurious,
            FaultOutcome::Mmio { .. } | FaultOutcome::MmioReadonlyWrite { .. } => Count::Emulate,
            _ => return Ok(outcome),
        };
        self.counters.add(fault.gpa, count, 1);
        Ok(outcome)
    }

    fn map_frame(
        &self,
        fault: &PageFault,
        faultin: &Faultin,
        slots: &impl Memslots,
        host: &impl HostFrames,
    ) -> Result<FaultOutcome, Error> {
        let gpa = fault.gpa;
        let size = mapping_size(&self.paging.format, fault, faultin, |_| true);
        if self.invalidations.retry(faultin.seq, AddrRange::page_of(gpa, size)) {
            return Ok(FaultOutcome::Retry);
        }
        let writable = match fault.writable(faultin) {
            // D tells, and not a fault.
            Writable::AfterLogging if self.logs_by_dirty_bits() => Writable::Yes,
            writable => writable,
        };
        let exec = self.options.nx_huge_pages && fault.access.fetches();
        let outcome = self.install(&Wanted { fault, faultin, writable, size, exec }, host)?;
        if faultin.slot.log_dirty && fault.access.writes() && matches!(outcome, FaultOutcome::Fixed { .. }) {
            slots.mark_page_dirty(gpa);
        }
        Ok(outcome)
    }

    /// The leaf itself (`make_spte`).
    fn leaf(&self, wanted: &Wanted<'_>, size: PageSize) -> Result<u64, Error> {
        let Wanted { fault, faultin, writable, .. } = *wanted;
        let mut spte = self.sptes.leaf(size, faultin.host.hpa.align_down(size), writable)?;
        if self.options.nx_huge_pages && size > PageSize::Size4K {
            spte = self.sptes.without_exec(spte);
        }
        if faultin.slot.log_dirty && self.logs_by_dirty_bits() {
            spte |= self.sptes.bits.logged;
            if !fault.access.writes() {
                spte &= !self.sptes.dirty;
            }
        }
        Ok(spte)
    }

    /// Descends to where the leaf belongs: links missing tables and splits a larger page in the way.
    fn install(&self, wanted: &Wanted<'_>, host: &impl HostFrames) -> Result<FaultOutcome, Error> {
        let Wanted { fault: &PageFault { gpa, access, .. }, exec, .. } = *wanted;
        let mut goal = if exec { 1 } else { wanted.size.level() };
        let mut split = false;
        let mut table = self.root();
        loop {
            let spot = self.read(table, table.index(gpa), host)?;
            if spot.spte == FROZEN {
                return Ok(FaultOutcome::Retry);
            }
            let target = self.sptes.target(table.level, spot.spte);
            let keeps = spot.spte & self.sptes.bits.huge_disallowed != 0;
            if goal == table.level && keeps && matches!(target, Target::Table(_)) {
                // `disallowed_hugepage_adjust`.
                goal -= 1;
            }
            if let (true, Some(size)) = (goal == table.level, PageSize::of_level(goal)) {
                if matches!(target, Target::Leaf(..)) && self.sptes.allows(spot.spte, access) {
                    return Ok(if split { FaultOutcome::Fixed { size } } else { FaultOutcome::Spurious });
                }
                if !self.exchange(spot, self.leaf(wanted, size)?, host)? {
                    continue;
                }
                if let Target::Table(child) = target {
                    // Processors may remember the table.
                    self.counters.add(gpa, Count::Flushes, 1);
                    self.free_tree(table.child(spot.index, child), true, host, &mut Gone::default())?;
                }
                return Ok(FaultOutcome::Fixed { size });
            }
            let disallowed = exec && wanted.size.level() >= table.level;
            let software = if disallowed { self.sptes.bits.huge_disallowed } else { 0 };
            let child = match target {
                Target::Table(child) => Some(table.child(spot.index, child)),
                Target::Absent => self.link(spot, software, host)?,
                Target::Leaf(..) => self.split(spot, software, host)?,
            };
            // Or else the entry is another one now.
            let Some(child) = child else { continue };
            if disallowed && !matches!(target, Target::Table(_)) {
                self.counters.add(gpa, Count::NxSplits, 1);
            }
            split |= matches!(target, Target::Leaf(..));
            table = child;
        }
    }

    /// Remembers that there is no slot at `gpa` (rule I1).
    fn map_mmio(&self, gpa: Gpa, slots: &impl Memslots, host: &impl HostFrames) -> Result<(), Error> {
        let Some(mmio) = &self.mmio else { return Ok(()) };
        // Before the slots are asked again: an entry may be too old, never too new.
        let spte = slots.generation().and_then(|generation| mmio.make(gpa, generation));
        let Some(spte) = spte.filter(|_| slots.slot(gpa) == SlotLookup::Hole) else { return Ok(()) };
        let mut table = self.root();
        loop {
            let spot = self.read(table, table.index(gpa), host)?;
            match self.sptes.target(table.level, spot.spte) {
                Target::Leaf(..) => return Ok(()),
                Target::Absent if spot.spte == FROZEN || spot.spte == spte => return Ok(()),
                Target::Absent if table.level == 1 => {
                    let made = self.exchange(spot, spte, host)?;
                    self.counters.add(gpa, Count::MmioCreated, made.into());
                    return Ok(());
                }
                Target::Absent => table = self.link(spot, 0, host)?.unwrap_or(table),
                Target::Table(child) => table = table.child(spot.index, child),
            }
        }
    }
}
