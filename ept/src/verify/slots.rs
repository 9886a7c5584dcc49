//! Slots in order: which one an address lies in, and which HVAs more than one has.

use alloc::vec::Vec;

use memory_model::{AddrRange, Gpa, Hva, PageSize};

use super::input::Guest;
use crate::error::Error;
use crate::mmu::Memslot;

/// A part of a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stretch {
    pub gpa: AddrRange<Gpa>,
    /// Where the first address lies in the process.
    pub hva: Hva,
    /// Index of the slot.
    pub slot: usize,
    /// An other slot of the process has the same HVAs: the frames are counted as that one's.
    pub alias: bool,
    /// Pages of the guest's stretches before this one.
    pages_before: u64,
}

impl Stretch {
    /// The number of the page among those of all the guest's stretches.
    pub fn page_of(&self, gpa: Gpa) -> u64 {
        self.pages_before + ((gpa.raw() - self.gpa.first().raw()) >> 12)
    }

    /// Pages of the guest's stretches up to the end of this one.
    pub fn pages_to_end(&self) -> u64 {
        self.page_of(self.gpa.last()) + 1
    }

    /// Where `gpa`, inside the stretch, lies in the process.
    pub fn hva_of(&self, gpa: Gpa) -> Hva {
        Hva(self.hva.raw() + (gpa.raw() - self.gpa.first().raw()))
    }
}

/// Two slots of one guest that share addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overlap {
    pub guest: usize,
    pub first: Gpa,
    pub second: Gpa,
    pub at: Gpa,
}

/// The stretches of each guest, by address and disjoint: where slots overlap, the one that starts lower counts.
pub(super) fn stretches(guests: &[Guest<'_>]) -> Result<(Vec<Vec<Stretch>>, Vec<Overlap>), Error> {
    let mut overlaps = Vec::new();
    let mut spaces = Vec::new();
    for (number, guest) in guests.iter().enumerate() {
        let mut slots = guest.slots.iter().enumerate().collect::<Vec<_>>();
        slots.sort_by_key(|(_, slot)| slot.memslot.base);
        let mut space: Vec<Stretch> = Vec::with_capacity(slots.len());
        for (index, slot) in slots {
            let (gpa, hva) = ranges(&slot.memslot)?;
            let whole = Stretch { gpa, hva: hva.first(), slot: index, alias: false, pages_before: 0 };
            let below = space.last().filter(|below| below.gpa.last() >= gpa.first());
            let Some(below) = below else {
                space.push(whole);
                continue;
            };
            let first = guest.slots[below.slot].memslot.base;
            overlaps.push(Overlap {
                guest: number,
                first,
                second: gpa.first(),
                at: gpa.first().max(below.gpa.first()),
            });
            let rest = below.gpa.last().checked_add(1).and_then(|next| gpa.from_addr(next));
            if let Some(rest) = rest {
                space.push(Stretch { gpa: rest, hva: whole.hva_of(rest.first()), ..whole });
            }
        }
        spaces.push(space);
    }
    split_aliases(guests, &mut spaces);
    Ok((spaces, overlaps))
}

/// The slot's addresses in the guest and in the process.
fn ranges(slot: &Memslot) -> Result<(AddrRange<Gpa>, AddrRange<Hva>), Error> {
    let Memslot { base, bytes, hva, .. } = *slot;
    let size = PageSize::Size4K;
    let aligned = base.is_aligned(size) && hva.is_aligned(size) && bytes % size.bytes() == 0;
    AddrRange::new(base, bytes.into())
        .zip(AddrRange::new(hva, bytes.into()))
        .filter(|_| aligned)
        .ok_or(Error::Slot { base, bytes })
}

/// Marks what another stretch of the same process has already: by HVA, each stretch begins with that part, if it has
/// one, as the others before it began no higher.
fn split_aliases(guests: &[Guest<'_>], spaces: &mut [Vec<Stretch>]) {
    let mut by_hva = Vec::new();
    for (guest, space) in spaces.iter().enumerate() {
        by_hva.extend((0..space.len()).map(|at| (guests[guest].process, space[at].hva, guest, at)));
    }
    by_hva.sort();
    let mut cuts = Vec::new();
    let mut reached: Option<(u32, Hva)> = None;
    for (process, hva, guest, at) in by_hva {
        let stretch = &mut spaces[guest][at];
        let last = stretch.hva_of(stretch.gpa.last());
        match reached.filter(|&(other, end)| other == process && end >= hva) {
            None => reached = Some((process, last)),
            Some((_, end)) => {
                stretch.alias = true;
                if end < last {
                    let own = Gpa(stretch.gpa.first().raw() + (end.raw() - hva.raw()) + 1);
                    cuts.push((guest, at, own));
                    reached = Some((process, last));
                }
            }
        }
    }
    for &(guest, at, own) in &cuts {
        let stretch = spaces[guest][at];
        let Some(rest) = stretch.gpa.from_addr(own) else { continue };
        spaces[guest].push(Stretch { gpa: rest, hva: stretch.hva_of(own), alias: false, ..stretch });
        let front = AddrRange::inclusive(stretch.gpa.first(), Gpa(own.raw() - 1));
        spaces[guest][at].gpa = front.unwrap_or(stretch.gpa);
    }
    for space in spaces {
        space.sort_by_key(|stretch| stretch.gpa.first());
        let mut pages = 0;
        for stretch in space {
            stretch.pages_before = pages;
            pages = stretch.pages_to_end();
        }
    }
}

/// The stretches from the one that holds `gpa`, or the first above it, on.
pub(super) fn from(space: &[Stretch], gpa: Gpa) -> &[Stretch] {
    &space[space.partition_point(|stretch| stretch.gpa.last() < gpa)..]
}
