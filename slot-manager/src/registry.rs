//! Slots by number, by guest address and by host address.

mod hva;
mod sorted;

use memory_model::{AddrRange, Gpa, Hva};

use crate::{Slot, SlotId, SlotOp};
use hva::HvaIndex;
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
/// The slots lie in no order. Three sorted arrays lead to them: of numbers, of first guest
/// addresses, of host ranges. A look-up is one binary search; a change shifts what lies behind it, which costs
/// less than the ioctl that it stands for.
#[derive(Clone, Debug)]
pub struct SlotRegistry<S = Slot> {
    slots: Vec<S>,
    by_id: Sorted,
    by_gpa: Sorted,
    by_hva: HvaIndex,
}

/// An index of `slots`.
type Place = u32;

impl<S> Default for SlotRegistry<S> {
    fn default() -> Self {
        let (by_id, by_gpa, by_hva) = Default::default();
        Self { slots: Vec::new(), by_id, by_gpa, by_hva }
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
        self.by_gpa.entries(0).iter().map(|entry| self.at(entry.place))
    }

    /// The numbers in use, ascending.
    pub fn ids(&self) -> impl Iterator<Item = SlotId> {
        self.by_id.firsts().iter().map(|&id| SlotId(id as u32))
    }

    /// The numbers not in use, ascending, without a look at those in use (rule R2).
    pub fn free_ids(&self) -> impl Iterator<Item = SlotId> {
        let (mut used, mut next) = (self.by_id.firsts(), 0);
        std::iter::from_fn(move || {
            while used.first() == Some(&next) {
                let run = dense_run(used);
                next += run as u64;
                used = &used[run..];
            }
            let free = u32::try_from(next).ok().map(SlotId);
            next += 1;
            free
        })
    }

    /// The slot with that number.
    pub fn by_id(&self, id: SlotId) -> Option<&S> {
        Some(self.at(self.place_of(id)?))
    }

    /// The slot that holds `gpa`.
    #[inline]
    pub fn by_gpa(&self, gpa: Gpa) -> Option<&S> {
        let entry = self.by_gpa.last_not_above(gpa.0)?;
        (gpa.0 <= entry.last).then(|| self.at(entry.place))
    }

    /// Every slot that shows the byte at `hva`, in no order: the same memory can be seen at several places.
    #[inline]
    pub fn by_hva(&self, hva: Hva) -> impl Iterator<Item = &S> {
        self.overlapping_hva(AddrRange::inclusive(hva, hva).expect("an address is not below itself"))
    }

    /// The slots that share a byte with `range`, by ascending guest address.
    pub fn overlapping(&self, range: AddrRange<Gpa>) -> impl Iterator<Item = &S> {
        let from = self.by_gpa.count_not_above(range.first().0).saturating_sub(1);
        let slots = self.by_gpa.entries(from).iter().map(|entry| self.at(entry.place));
        slots
            .skip_while(move |slot| slot.gpa().last() < range.first())
            .take_while(move |slot| slot.gpa().first() <= range.last())
    }

    /// The slots that show a byte of `range`, in no order: whom an MMU notifier concerns.
    #[inline]
    pub fn overlapping_hva(&self, range: AddrRange<Hva>) -> impl Iterator<Item = &S> {
        self.by_hva.overlapping(range).map(|place| self.at(place))
    }

    /// Adds a slot. False, and nothing changed, if the number is taken or the guest range not free.
    pub fn insert(&mut self, slot: S) -> bool {
        let (id, gpa) = (slot.id(), slot.gpa());
        if self.place_of(id).is_some() || self.overlapping(gpa).next().is_some() {
            return false;
        }
        let place = Place::try_from(self.slots.len()).expect("numbers are unique and have 32 bits");
        self.by_hva.insert(slot.hva_range(), place);
        self.by_id.insert(id.0.into(), id.0.into(), place);
        self.by_gpa.insert(gpa.first().0, gpa.last().0, place);
        self.slots.push(slot);
        true
    }

    /// Takes a slot out.
    pub fn remove(&mut self, id: SlotId) -> Option<S> {
        let place = self.place_of(id)?;
        let slot = self.slots.swap_remove(place as usize);
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
        let entry = self.by_id.last_not_above(id.0.into())?;
        (entry.last == u64::from(id.0)).then_some(entry.place)
    }

    #[inline]
    fn at(&self, place: Place) -> &S {
        &self.slots[place as usize]
    }
}

/// How many numbers follow one another without a gap, of some that ascend: each of them is as far from the
/// first as its index is.
fn dense_run(ascending: &[u64]) -> usize {
    let (mut dense, mut gap) = (1, ascending.len());
    while dense < gap {
        let middle = dense + (gap - dense) / 2;
        if ascending[middle] - ascending[0] == middle as u64 { dense = middle + 1 } else { gap = middle }
    }
    dense
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
