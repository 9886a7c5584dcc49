//! Slots by number, by guest address and by host address.

mod chunk;
mod hva;
mod numbers;
mod sorted;

use std::hint::select_unpredictable;

use memory_model::{AddrRange, Gpa, Hva};

use crate::{Slot, SlotId, SlotOp};
use chunk::Entry;
use hva::HvaIndex;
use numbers::FreeNumbers;
use sorted::Sorted;

/// What a registry needs to know of a slot.
pub trait SlotRecord {
    /// Its number.
    fn id(&self) -> SlotId;
    /// Where the guest sees it.
    fn gpa(&self) -> AddrRange<Gpa>;
    /// Where this process sees its first byte.
    fn hva(&self) -> Hva;

    /// Where this process sees it; cut off at the end of the address space.
    fn hva_range(&self) -> AddrRange<Hva> {
        let first = self.hva();
        let last = u128::from(first.0) + (self.gpa().bytes() - 1);
        let last = Hva(u64::try_from(last).unwrap_or(u64::MAX));
        AddrRange::inclusive(first, last).expect("the last byte is not below the first")
    }

    /// Where this process sees the byte at `gpa`, if the slot holds it.
    fn hva_of(&self, gpa: Gpa) -> Option<Hva> {
        self.hva().checked_add(self.gpa().offset_of(gpa)?)
    }

    /// Where the guest sees the byte at `hva` by this slot.
    fn gpa_of(&self, hva: Hva) -> Option<Gpa> {
        self.gpa().first().checked_add(self.hva_range().offset_of(hva)?)
    }
}

/// The slots of one address space. Guest ranges never overlap; host ranges may (rule K1).
///
/// The slots lie in no order. Three indexes lead to them: of numbers, of first guest addresses, of host ranges.
/// Each is an array of short sorted arrays. A look-up is a binary search of both without a branch that a processor
/// could guess wrongly; a change shifts what is behind it in one of the short ones.
#[derive(Clone, Debug)]
pub struct SlotRegistry<S = Slot> {
    slots: Vec<S>,
    by_id: Sorted,
    free_ids: FreeNumbers,
    by_gpa: Sorted,
    by_hva: HvaIndex,
}

/// An index of `slots`.
type Place = u32;

impl<S> Default for SlotRegistry<S> {
    fn default() -> Self {
        let (by_id, free_ids, by_gpa, by_hva) = Default::default();
        Self { slots: Vec::new(), by_id, free_ids, by_gpa, by_hva }
    }
}

impl<S: SlotRecord> SlotRegistry<S> {
    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All slots, by ascending guest address.
    pub fn iter(&self) -> impl Iterator<Item = &S> {
        self.by_gpa.iter().map(|entry| self.at(entry.place))
    }

    /// The numbers in use, ascending.
    pub fn ids(&self) -> impl Iterator<Item = SlotId> {
        self.by_id.firsts().map(|id| SlotId(id as u32))
    }

    /// The numbers not in use, ascending, without a look at those in use (rule R2).
    pub fn free_ids(&self) -> impl Iterator<Item = SlotId> {
        self.free_ids.iter().map(SlotId)
    }

    /// The slot with that number.
    pub fn by_id(&self, id: SlotId) -> Option<&S> {
        Some(self.at(self.place_of(id)?))
    }

    /// The slot that holds `gpa`.
    #[inline]
    pub fn by_gpa(&self, gpa: Gpa) -> Option<&S> {
        let near = self.by_gpa.find(gpa.0)?;
        let slot = self.at(near.entry.place);
        // A hole is as likely as a slot: there is no branch to be guessed.
        select_unpredictable((near.first <= gpa.0) & (gpa.0 <= near.entry.last), Some(slot), None)
    }

    /// Every slot that shows the byte at `hva`, in no order: the same memory can be seen at several places.
    #[inline]
    pub fn by_hva(&self, hva: Hva) -> impl Iterator<Item = &S> {
        self.overlapping_hva(AddrRange::inclusive(hva, hva).expect("an address is not below itself"))
    }

    /// The slots that share a byte with `range`, by ascending guest address.
    pub fn overlapping(&self, range: AddrRange<Gpa>) -> impl Iterator<Item = &S> {
        let slots = self.by_gpa.iter_from(range.first().0).map(|entry| self.at(entry.place));
        slots
            .skip_while(move |slot| slot.gpa().last() < range.first())
            .take_while(move |slot| slot.gpa().first() <= range.last())
    }

    /// The slots that show a byte of `range`, in no order: whom an MMU notifier concerns.
    #[inline]
    pub fn overlapping_hva(&self, range: AddrRange<Hva>) -> impl Iterator<Item = &S> {
        self.by_hva.overlapping(range, &self.slots)
    }

    /// Adds a slot. False, and nothing changed, if the number is taken or the guest range not free.
    pub fn insert(&mut self, slot: S) -> bool {
        let (id, gpa) = (slot.id(), slot.gpa());
        if self.place_of(id).is_some() || self.overlapping(gpa).next().is_some() {
            return false;
        }
        let place = Place::try_from(self.slots.len()).expect("numbers are unique and have 32 bits");
        self.by_hva.insert(slot.hva_range(), place);
        self.free_ids.take(id.0);
        self.by_id.insert(id.0.into(), Entry { last: id.0.into(), place });
        self.by_gpa.insert(gpa.first().0, Entry { last: gpa.last().0, place });
        self.slots.push(slot);
        true
    }

    /// Takes a slot out.
    pub fn remove(&mut self, id: SlotId) -> Option<S> {
        let place = self.place_of(id)?;
        let slot = self.slots.swap_remove(place as usize);
        self.free_ids.give_back(id.0);
        self.by_id.remove(id.0.into(), place);
        self.by_gpa.remove(slot.gpa().first().0, place);
        self.by_hva.remove(slot.hva_range(), place);
        // The last slot has taken its place.
        if let Some(moved) = self.slots.get(place as usize) {
            let from = self.slots.len() as Place;
            self.by_id.relocate(moved.id().0.into(), from, place);
            self.by_gpa.relocate(moved.gpa().first().0, from, place);
            self.by_hva.relocate(moved.hva_range(), from, place);
        }
        Some(slot)
    }

    fn place_of(&self, id: SlotId) -> Option<Place> {
        let near = self.by_id.find(id.0.into())?;
        (near.first == u64::from(id.0)).then_some(near.entry.place)
    }

    #[inline]
    fn at(&self, place: Place) -> &S {
        &self.slots[place as usize]
    }
}

impl SlotRegistry {
    /// Notes that `op` was done. False, and nothing changed, if it could not have been: what it works on is
    /// not here, or what it makes has no room.
    pub fn apply(&mut self, op: &SlotOp) -> bool {
        let before = (!matches!(op, SlotOp::Create(_))).then(|| op.slot());
        if before.is_some_and(|slot| self.by_id(slot.id) != Some(slot)) {
            return false;
        }
        let old = before.and_then(|slot| self.remove(slot.id));
        let done = op.result().is_none_or(|slot| self.insert(slot));
        if let (false, Some(old)) = (done, old) {
            self.insert(old);
        }
        done
    }
}
