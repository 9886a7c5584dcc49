//! Slots by number, by guest address and by host address.

use std::collections::{BTreeMap, BTreeSet};

use memory_model::{AddrRange, Gpa, Hva};

use crate::{Slot, SlotId, SlotOp};

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
#[derive(Clone, Debug)]
pub struct SlotRegistry<S = Slot> {
    by_gpa: BTreeMap<Gpa, S>,
    by_id: BTreeMap<SlotId, Gpa>,
    by_hva: HvaIndex,
}

impl<S> Default for SlotRegistry<S> {
    fn default() -> Self {
        Self { by_gpa: BTreeMap::new(), by_id: BTreeMap::new(), by_hva: HvaIndex::default() }
    }
}

impl<S: SlotRecord> SlotRegistry<S> {
    /// How many slots there are.
    pub fn len(&self) -> usize {
        self.by_gpa.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_gpa.is_empty()
    }

    /// All slots, by ascending guest address.
    pub fn iter(&self) -> impl Iterator<Item = &S> {
        self.by_gpa.values()
    }

    /// The numbers in use, ascending.
    pub fn ids(&self) -> impl Iterator<Item = SlotId> {
        self.by_id.keys().copied()
    }

    /// The slot with that number.
    pub fn by_id(&self, id: SlotId) -> Option<&S> {
        self.by_gpa.get(self.by_id.get(&id)?)
    }

    /// The slot that holds `gpa`.
    pub fn by_gpa(&self, gpa: Gpa) -> Option<&S> {
        let (_, slot) = self.by_gpa.range(..=gpa).next_back()?;
        slot.gpa().contains(gpa).then_some(slot)
    }

    /// Every slot that shows the byte at `hva`, by ascending number: the same memory can be seen at several
    /// places.
    pub fn by_hva(&self, hva: Hva) -> impl Iterator<Item = &S> {
        self.overlapping_hva(AddrRange::inclusive(hva, hva).expect("an address is not below itself"))
    }

    /// The slots that share a byte with `range`, by ascending guest address.
    pub fn overlapping(&self, range: AddrRange<Gpa>) -> impl Iterator<Item = &S> {
        let before = self.by_gpa.range(..range.first()).next_back();
        let before = before.map(|(_, slot)| slot).filter(move |slot| slot.gpa().overlaps(range));
        let within = self.by_gpa.range(range.first()..=range.last()).map(|(_, slot)| slot);
        before.into_iter().chain(within)
    }

    /// The slots that show a byte of `range`, by ascending number: whom an MMU notifier concerns.
    pub fn overlapping_hva(&self, range: AddrRange<Hva>) -> impl Iterator<Item = &S> {
        self.by_hva.overlapping(range).into_iter().filter_map(|id| self.by_id(id))
    }

    /// Adds a slot. False, and nothing changed, if the number is taken or the guest range not free.
    pub fn insert(&mut self, slot: S) -> bool {
        let (id, gpa) = (slot.id(), slot.gpa());
        if self.by_id.contains_key(&id) || self.overlapping(gpa).next().is_some() {
            return false;
        }
        self.by_hva.insert(slot.hva_range(), id);
        self.by_id.insert(id, gpa.first());
        self.by_gpa.insert(gpa.first(), slot);
        true
    }

    /// Takes a slot out.
    pub fn remove(&mut self, id: SlotId) -> Option<S> {
        let slot = self.by_gpa.remove(&self.by_id.remove(&id)?)?;
        self.by_hva.remove(slot.hva_range(), id);
        Some(slot)
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

/// Host ranges, which may overlap, by what they hold (the kernel uses an interval tree).
///
/// Ranges are sorted by length class, the number of bits of the length. Inside a class no range is longer
/// than twice another, so those that reach an address start within a short stretch before it.
#[derive(Clone, Debug, Default)]
struct HvaIndex {
    classes: BTreeMap<u32, BTreeSet<(AddrRange<Hva>, SlotId)>>,
}

impl HvaIndex {
    fn class(range: AddrRange<Hva>) -> u32 {
        (range.last().raw() - range.first().raw()).checked_ilog2().unwrap_or(0)
    }

    fn insert(&mut self, range: AddrRange<Hva>, id: SlotId) {
        self.classes.entry(Self::class(range)).or_default().insert((range, id));
    }

    fn remove(&mut self, range: AddrRange<Hva>, id: SlotId) {
        let class = Self::class(range);
        if let Some(ranges) = self.classes.get_mut(&class) {
            ranges.remove(&(range, id));
            if ranges.is_empty() {
                self.classes.remove(&class);
            }
        }
    }

    /// Who shares a byte with `range`, by ascending number.
    fn overlapping(&self, range: AddrRange<Hva>) -> Vec<SlotId> {
        let mut found: Vec<_> = self
            .classes
            .iter()
            .flat_map(|(&class, ranges)| {
                // The longest range of the class is 2^(class + 1) bytes.
                let longest = u64::MAX >> (63 - class);
                let lowest = Hva(range.first().0.saturating_sub(longest));
                let from = AddrRange::inclusive(lowest, lowest).expect("an address is not below itself");
                ranges
                    .range((from, SlotId(0))..)
                    .take_while(|(candidate, _)| candidate.first() <= range.last())
                    .filter(|(candidate, _)| candidate.overlaps(range))
                    .map(|&(_, id)| id)
            })
            .collect();
        found.sort_unstable();
        found
    }
}
