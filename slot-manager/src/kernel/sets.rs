//! The two sets of slots of an address space, and how they change places.

use std::collections::BTreeMap;

use memory_model::Gpa;

use super::dirty_bitmap::DirtyBitmap;
use super::{KernelMemslots, KvmArch, Memslot};
use crate::{SlotId, SlotRegistry};

/// The bit of a generation that says that readers may still see the set before (rule K3).
pub const GENERATION_UPDATE: u64 = 1 << 63;

/// One set of slots (`kvm_memslots`), by number, guest address and host address.
#[derive(Debug)]
pub struct MemslotSet {
    slots: SlotRegistry<Memslot>,
    generation: u64,
}

impl MemslotSet {
    /// The slots. One that is being deleted or moved is there as its INVALID copy.
    pub fn slots(&self) -> &SlotRegistry<Memslot> {
        &self.slots
    }

    /// The slot that holds `gpa`, INVALID or not (`gfn_to_memslot`).
    pub fn gfn_to_memslot(&self, gpa: Gpa) -> Option<&Memslot> {
        self.slots.by_gpa(gpa)
    }

    /// Unlike any other set's of this VM. Whoever cached a look-up compares it.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// `kvm_replace_memslot`.
    fn replace(&mut self, old: Option<Memslot>, new: Option<Memslot>) {
        if let Some(old) = old {
            self.slots.remove(old.id);
        }
        let room = new.is_none_or(|new| self.slots.insert(new));
        debug_assert!(room, "the call was checked against the active set, which shows the same slots");
    }
}

/// An address space: the set in force, the one that writers edit (rule K2), and the dirty bitmaps.
///
/// A bitmap belongs to a slot's number and not to one of its copies, so it outlives a move (rule K5).
#[derive(Debug)]
pub(super) struct AddressSpace {
    sets: [MemslotSet; 2],
    active: usize,
    pub(super) bitmaps: BTreeMap<SlotId, DirtyBitmap>,
}

impl AddressSpace {
    /// Address space number `as_id`, whose number is its first generation.
    pub(super) fn new(as_id: u32) -> Self {
        let set = || MemslotSet { slots: SlotRegistry::default(), generation: as_id.into() };
        Self { sets: [set(), set()], active: 0, bitmaps: BTreeMap::new() }
    }

    pub(super) fn active(&self) -> &MemslotSet {
        &self.sets[self.active]
    }

    fn inactive(&mut self) -> &mut MemslotSet {
        &mut self.sets[1 - self.active]
    }

    /// Edits the inactive set.
    pub(super) fn replace(&mut self, old: Option<Memslot>, new: Option<Memslot>) {
        self.inactive().replace(old, new);
    }

    /// Takes the memory of a closed guest_memfd from the slots that have some.
    pub(super) fn forget_file(&mut self, fd: u32) {
        for set in &mut self.sets {
            let holders: Vec<_> = set
                .slots
                .iter()
                .filter(|slot| slot.guest_memfd.is_some_and(|part| part.fd == fd))
                .copied()
                .collect();
            for slot in holders {
                set.replace(Some(slot), Some(Memslot { guest_memfd: None, ..slot }));
            }
        }
    }

    /// Publishes the inactive set, with a generation that says so.
    fn publish(&mut self) {
        let generation = self.active().generation;
        self.inactive().generation = generation | GENERATION_UPDATE;
        self.active = 1 - self.active;
    }

    /// Ends the update. Counting in steps of the number of address spaces keeps all generations different.
    fn settle(&mut self, address_spaces: u64) {
        let generation = &mut self.sets[self.active].generation;
        *generation = (*generation & !GENERATION_UPDATE) + address_spaces;
    }
}

impl KernelMemslots {
    /// `kvm_swap_active_memslots`. Nobody changes host mappings here while a call is made, so there is no
    /// invalidation to wait for; and whoever reads the slots has given them back when a writer gets them, so
    /// there is no reader either.
    pub(super) fn swap_active_memslots(&mut self, as_id: u32, arch: &mut impl KvmArch) {
        self.space_mut(as_id).publish();
        arch.memslots_swapped(self, as_id);
        let address_spaces = self.caps.address_spaces.into();
        self.space_mut(as_id).settle(address_spaces);
    }

    /// `kvm_activate_memslot`: publishes the inactive set, and makes the same change to the other.
    pub(super) fn activate_memslot(
        &mut self,
        as_id: u32,
        (old, new): (Option<Memslot>, Option<Memslot>),
        arch: &mut impl KvmArch,
    ) {
        self.swap_active_memslots(as_id, arch);
        self.space_mut(as_id).replace(old, new);
    }
}
