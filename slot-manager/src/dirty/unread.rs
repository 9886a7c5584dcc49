//! Dirty bits between the kernel and those who ask for them.

use std::collections::BTreeMap;
use std::ops::Range;

use memory_model::{AddrRange, Gpa};

use super::pages::{BITS, DirtyPages, SlotPages};
use crate::{Slot, SlotId, SlotRecord};

/// The bits that were read from the kernel and not handed out yet. Reading can clear a whole log where only a
/// part of it is wanted, and rings tell of all slots at once: what is not wanted yet waits here.
#[derive(Default)]
pub(crate) struct Unread {
    /// A bit for each page of the slot, rounded up to a word.
    slots: BTreeMap<SlotId, Vec<u64>>,
    /// Of slots that are gone (rule R9).
    rescued: DirtyPages,
}

/// A part of a slot whose bits are handed out: what `KVM_CLEAR_DIRTY_LOG` takes (rule D4).
pub(crate) struct Part {
    /// A multiple of 64.
    pub(crate) first_page: u64,
    /// A multiple of 64, unless it reaches the slot's end.
    pub(crate) num_pages: u32,
    /// Nothing set before or behind the pages asked for, though they need not begin or end a word.
    pub(crate) words: Vec<u64>,
}

impl Part {
    /// Its bits as pages.
    pub(crate) fn into_pages(self, slot: &Slot) -> SlotPages {
        SlotPages::new(slot.clone(), self.first_page, self.words)
    }
}

impl Unread {
    /// Adds a log that was read.
    pub(crate) fn merge(&mut self, slot: SlotId, bitmap: Vec<u64>) {
        match self.slots.get_mut(&slot) {
            Some(words) => words.iter_mut().zip(bitmap).for_each(|(word, more)| *word |= more),
            None => {
                self.slots.insert(slot, bitmap);
            }
        }
    }

    /// Adds one page. The kernel tells only of pages that the slot has.
    pub(crate) fn note(&mut self, slot: &Slot, page: u64) {
        let words = self.words(slot);
        if let Some(word) = words.get_mut((page / BITS) as usize) {
            *word |= 1 << (page % BITS);
        }
    }

    /// The bits of the pages of `slot` that lie in `range`, which stay here.
    pub(crate) fn part(&self, slot: &Slot, range: AddrRange<Gpa>) -> Option<Part> {
        let (words, pages) = (self.slots.get(&slot.id)?, pages_in(slot, range)?);
        let within = pages.start / BITS..pages.end.div_ceil(BITS);
        let mut words = words[within.start as usize..within.end as usize].to_vec();
        let first_page = within.start * BITS;
        let num_pages = slot.pages().min(within.end * BITS) - first_page;
        mask(&mut words, pages.start - first_page..pages.end - first_page);
        Some(Part { first_page, num_pages: page_count(num_pages), words })
    }

    /// Takes the same out.
    pub(crate) fn take(&mut self, slot: &Slot, range: AddrRange<Gpa>) -> Option<Part> {
        if range.covers(slot.gpa) {
            // A long slot has a long log, which need not be copied.
            let words = self.slots.remove(&slot.id)?;
            return Some(Part { first_page: 0, num_pages: page_count(slot.pages()), words });
        }
        let part = self.part(slot, range)?;
        self.words_of(slot, &part).for_each(|(word, taken)| *word &= !taken);
        Some(part)
    }

    /// Puts back what was taken out.
    pub(crate) fn put_back(&mut self, slot: &Slot, part: Part) {
        self.words_of(slot, &part).for_each(|(word, taken)| *word |= taken);
    }

    fn words(&mut self, slot: &Slot) -> &mut Vec<u64> {
        self.slots.entry(slot.id).or_insert_with(|| vec![0; slot.pages().div_ceil(BITS) as usize])
    }

    /// Those words of a slot that `part` has, beside its own.
    fn words_of<'a>(
        &'a mut self,
        slot: &Slot,
        part: &'a Part,
    ) -> impl Iterator<Item = (&'a mut u64, &'a u64)> {
        self.words(slot)[(part.first_page / BITS) as usize..].iter_mut().zip(&part.words)
    }

    /// Keeps the bits of a slot that is gone.
    pub(crate) fn rescue(&mut self, slot: &Slot) {
        if let Some(words) = self.slots.remove(&slot.id) {
            self.rescued.push(SlotPages::new(slot.clone(), 0, words));
        }
    }

    /// Gives the pages of slots that are gone.
    pub(crate) fn take_rescued(&mut self) -> DirtyPages {
        std::mem::take(&mut self.rescued)
    }

    /// Drops the bits of a slot whose log has ended.
    pub(crate) fn forget(&mut self, slot: SlotId) {
        self.slots.remove(&slot);
    }
}

fn page_count(pages: u64) -> u32 {
    u32::try_from(pages).expect("a slot has fewer than 2^31 pages")
}

/// Which pages of the slot share a byte with `range`.
fn pages_in(slot: &Slot, range: AddrRange<Gpa>) -> Option<Range<u64>> {
    let base = slot.gpa().first().page_number();
    let common = slot.gpa().intersection(range)?;
    Some(common.first().page_number() - base..common.last().page_number() - base + 1)
}

/// Clears all bits outside `keep`, which begins in the first word and ends in the last.
fn mask(words: &mut [u64], keep: Range<u64>) {
    if let Some(first) = words.first_mut() {
        *first &= u64::MAX << (keep.start % BITS);
    }
    if let Some(last) = words.last_mut() {
        *last &= u64::MAX >> (BITS - 1 - (keep.end - 1) % BITS);
    }
}
