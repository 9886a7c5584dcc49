//! An exit, step by step (`kvm_mmu_page_fault`), and the faults that need no frame.

use memory_model::{Gpa, PageSize};

use super::Tdp;
use super::counters::Count;
use super::table::Spot;
use crate::access::Access;
use crate::error::Error;
use crate::fault::{Fault, PageFaultCode};
use crate::format::Entry;
use crate::mmu::mmio::MmioMaker;
use crate::mmu::spte::Target;
use crate::mmu::{FaultOutcome, HostFrames, Memslots, PageFault, SlotLookup};

/// Rule D5.
const ATTEMPTS: u32 = 5;

/// What a fast page fault makes of a leaf.
struct Fix {
    spte: u64,
    size: PageSize,
    /// The page becomes writable, and its slot has a log.
    logs: bool,
}

impl Tdp {
    /// An exit at `gpa`, as the walk says why: a violation, a misconfiguration, a nested page fault (steps 1 and 2).
    pub fn exit<S: Memslots, F: HostFrames>(
        &self,
        gpa: Gpa,
        why: Fault,
        slots: &S,
        host: &F,
    ) -> Result<FaultOutcome, Error> {
        let code = PageFaultCode::of_exit(why);
        if code.contains(PageFaultCode::RESERVED)
            && let Some(outcome) = self.mmio_page_fault(gpa, slots, host)?
        {
            return Ok(outcome);
        }
        self.fault(gpa, code.access(), slots, host)
    }

    /// A fault at `gpa`, from beginning to end (`kvm_tdp_page_fault`). Where the host may invalidate from inside
    /// [`HostFrames::host_frame`], its owner's lock cannot be held meanwhile: then [`fast`](Self::fast) and
    /// [`map`](Self::map) are called with it, and [`PageFault::resolve`] between them without.
    pub fn fault<S: Memslots, F: HostFrames>(
        &self,
        gpa: Gpa,
        access: Access,
        slots: &S,
        host: &F,
    ) -> Result<FaultOutcome, Error> {
        let fault = PageFault::of_tdp(gpa, access);
        if let Some(outcome) = self.fast(&fault, slots, host)? {
            return Ok(outcome);
        }
        let resolved = fault.resolve(self.invalidations.seq(), slots, host);
        self.map(&fault, resolved, slots, host)
    }

    /// Step 4: a fault that needs no frame (`fast_page_fault`, rule D5): the tables allow the access already, or may
    /// without asking anyone. `None` if there is more to do.
    pub fn fast<S: Memslots, F: HostFrames>(
        &self,
        fault: &PageFault,
        slots: &S,
        host: &F,
    ) -> Result<Option<FaultOutcome>, Error> {
        let gpa = fault.gpa;
        self.counters.add(gpa, Count::Taken, 1);
        // As KVM does beyond `kvm_mmu_max_gfn`: what the tables cannot map is emulated.
        if !self.paging.format.translates(gpa.raw()) {
            self.counters.add(gpa, Count::Emulate, 1);
            return Ok(Some(FaultOutcome::Mmio { gpa }));
        }
        // `page_fault_can_be_fast`.
        let fast = fault.access.writes() || !self.paging.format.has_accessed_dirty();
        for _ in 0..ATTEMPTS {
            let Some(spot) = self.leaf_at(gpa, host)? else { return Ok(None) };
            let (outcome, count) = if self.sptes.allows(spot.spte, fault.access) {
                (FaultOutcome::Spurious, Count::Spurious)
            } else {
                let Some(Fix { spte, size, logs }) = self.fix(spot, fault, slots) else { return Ok(None) };
                if !self.exchange(spot, spte, host)? {
                    continue;
                }
                if logs {
                    slots.mark_page_dirty(gpa);
                }
                (FaultOutcome::Fixed { size }, Count::Fixed)
            };
            self.counters.add(gpa, count, 1);
            self.counters.add(gpa, Count::Fast, u64::from(fast));
            return Ok(Some(outcome));
        }
        Ok(None)
    }

    /// A leaf with the rights that the access lacks; `None` if that takes more than the leaf.
    fn fix(&self, spot: Spot, fault: &PageFault, slots: &impl Memslots) -> Option<Fix> {
        let size = self.paging.format.page_size(spot.table.level)?;
        let mut fix = Fix { spte: self.sptes.restored(spot.spte), size, logs: false };
        if fault.access.writes() && fix.spte & self.sptes.bits.mmu_writable != 0 {
            let SlotLookup::Slot(slot) = slots.slot(fault.gpa) else { return None };
            fix.logs = slot.log_dirty;
            if fix.logs && size > PageSize::Size4K {
                return None;
            }
            fix.spte |= self.sptes.write;
            if fix.logs && self.logs_by_dirty_bits() {
                fix.spte |= self.sptes.bits.logged;
            }
        }
        (fix.spte != spot.spte && self.sptes.allows(fix.spte, fault.access)).then_some(fix)
    }

    /// The last entry on the way to `gpa`.
    fn last_at(&self, gpa: Gpa, host: &impl HostFrames) -> Result<Spot, Error> {
        let mut table = self.root();
        loop {
            let spot = self.read(table, table.index(gpa), host)?;
            match self.sptes.target(table.level, spot.spte) {
                Target::Table(frame) => table = table.child(spot.index, frame),
                _ => return Ok(spot),
            }
        }
    }

    /// The leaf for `gpa`.
    fn leaf_at(&self, gpa: Gpa, host: &impl HostFrames) -> Result<Option<Spot>, Error> {
        let spot = self.last_at(gpa, host)?;
        Ok(self.sptes.bits.is_present(spot.spte).then_some(spot))
    }

    /// RSVD or a misconfiguration (`handle_mmio_page_fault`, rule I2): MMIO, if the entry says so and is not from
    /// before a change of the slots. `None` if the fault is to be handled as any other.
    fn mmio_page_fault(
        &self,
        gpa: Gpa,
        slots: &impl Memslots,
        host: &impl HostFrames,
    ) -> Result<Option<FaultOutcome>, Error> {
        if !self.paging.format.translates(gpa.raw()) {
            return Ok(None);
        }
        let Spot { table, spte, .. } = self.last_at(gpa, host)?;
        if let Some(cached) = self.mmio.and_then(|mmio| mmio.generation(spte)) {
            let now = slots.generation().map(|now| now & MmioMaker::GENERATION);
            return Ok((now == Some(cached)).then_some(FaultOutcome::Mmio { gpa }));
        }
        match self.paging.format.decode(table.level, spte) {
            Entry::Malformed(reason) => Err(Error::Malformed { level: table.level, entry: spte, reason }),
            // Somebody has changed it meanwhile.
            _ => Ok(Some(FaultOutcome::Retry)),
        }
    }
}
