//! The guest's memory, as the walk through its tables sees it.

use core::cell::Cell;

use memory_model::{Gpa, Hva, PageSize};

use crate::mmu::{FaultOutcome, HostFrames, Memslot, Memslots, SlotLookup};
use crate::phys::{MemoryError, PhysMemory};

/// Guest-physical memory: through the slots to the host's frames.
pub(super) struct GuestMemory<'a, S, H> {
    slots: &'a S,
    host: &'a H,
    /// The slot of the last access: a guest's tables mostly lie in one.
    last: Cell<Option<Memslot>>,
    /// Why the last access failed, if it is no matter of the guest.
    refusal: Cell<Option<FaultOutcome>>,
}

impl<'a, S: Memslots, H: HostFrames> GuestMemory<'a, S, H> {
    pub fn new(slots: &'a S, host: &'a H) -> Self {
        Self { slots, host, last: Cell::new(None), refusal: Cell::new(None) }
    }

    /// The host that all of it lies in.
    pub fn host(&self) -> &'a H {
        self.host
    }

    /// What the fault came to if a table could not be read for a reason that the guest has no part in: its slot is
    /// about to go, or the host has no frame there.
    pub fn refusal(&self) -> Option<FaultOutcome> {
        self.refusal.get()
    }

    /// The slot, and where it has that address.
    pub fn slot(&self, gpa: Gpa) -> Option<(Memslot, Hva)> {
        if let Some(slot) = self.last.get()
            && let Some(hva) = slot.hva_of(gpa)
        {
            return Some((slot, hva));
        }
        match self.slots.slot(gpa) {
            SlotLookup::Slot(slot) => {
                self.last.set(Some(slot));
                Some((slot, slot.hva_of(gpa)?))
            }
            SlotLookup::Invalid => {
                self.refusal.set(Some(FaultOutcome::Retry));
                None
            }
            SlotLookup::Hole => None,
        }
    }

    fn hpa(&self, address: u64, write: bool) -> Result<u64, MemoryError> {
        let (gpa, absent) = (Gpa(address), MemoryError::Absent { address });
        let (_, hva) = self.slot(gpa).ok_or(absent)?;
        match self.host.host_frame(hva, write) {
            Ok(frame) => Ok(frame.hpa.raw() | gpa.page_offset(PageSize::Size4K)),
            Err(fault) => {
                self.refusal.set(Some(FaultOutcome::HostFault { gpa, hva, fault }));
                Err(absent)
            }
        }
    }
}

impl<S: Memslots, H: HostFrames> PhysMemory for GuestMemory<'_, S, H> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.host.read_entry(self.hpa(address, false)?)
    }

    fn read_table(&self, table: u64, entries: &mut [u64; 512]) -> Result<(), MemoryError> {
        self.host.read_table(self.hpa(table, false)?, entries)
    }

    /// Sets flags of a guest's entry. One in a read-only slot has none set, and is used nevertheless
    /// (`update_accessed_dirty_bits`).
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        if self.slot(Gpa(address)).is_some_and(|(slot, _)| slot.readonly) {
            return Ok(true);
        }
        let hpa = self.hpa(address, true)?;
        let done = self.host.compare_exchange(hpa, current, new)?;
        if done {
            self.slots.mark_page_dirty(Gpa(address));
        }
        Ok(done)
    }
}
