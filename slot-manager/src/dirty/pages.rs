//! Dirty pages as they are handed out.

use memory_model::{AddrRange, DirtyClients, Gpa, PageSize};

use crate::{Slot, SlotRecord};

/// Pages in a word of a bitmap.
pub(super) const BITS: u64 = 64;

/// Dirty pages, slot by slot.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DirtyPages {
    slots: Vec<SlotPages>,
}

/// Dirty pages of one slot, with the slot as it was when they were read: a page can be found in its block
/// though the guest sees it elsewhere by now, or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotPages {
    slot: Slot,
    /// The page of the slot that the first bit stands for.
    first: u64,
    words: Vec<u64>,
}

impl DirtyPages {
    pub(crate) fn push(&mut self, pages: SlotPages) {
        if pages.words.iter().any(|&word| word != 0) {
            self.slots.push(pages);
        }
    }

    pub(crate) fn extend(&mut self, more: Self) {
        self.slots.extend(more.slots);
    }

    /// Slot by slot. A slot can come twice: as it was before it went, and as it is.
    pub fn slots(&self) -> &[SlotPages] {
        &self.slots
    }

    /// The first byte of each dirty page as the guest saw it.
    pub fn pages(&self) -> impl Iterator<Item = Gpa> {
        self.slots.iter().flat_map(SlotPages::pages)
    }

    /// How many pages are dirty.
    pub fn count(&self) -> u64 {
        self.slots.iter().map(SlotPages::count).sum()
    }

    /// Whether no page is dirty.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Notes the pages in their blocks.
    pub(crate) fn mark_blocks(&self, clients: DirtyClients) {
        self.slots.iter().for_each(|pages| pages.mark_block(clients));
    }
}

impl FromIterator<SlotPages> for DirtyPages {
    fn from_iter<I: IntoIterator<Item = SlotPages>>(pages: I) -> Self {
        let mut all = Self::default();
        pages.into_iter().for_each(|pages| all.push(pages));
        all
    }
}

impl SlotPages {
    pub(super) fn new(slot: Slot, first: u64, words: Vec<u64>) -> Self {
        Self { slot, first, words }
    }

    /// The slot.
    pub fn slot(&self) -> &Slot {
        &self.slot
    }

    /// The first byte of each dirty page as the guest saw it, ascending.
    pub fn pages(&self) -> impl Iterator<Item = Gpa> {
        let base = self.slot.gpa.first().page_number() + self.first;
        set_bits(&self.words).map(move |page| Gpa((base + page) << PageSize::Size4K.shift()))
    }

    /// The same as few ranges, ascending.
    pub fn runs(&self) -> impl Iterator<Item = AddrRange<Gpa>> {
        let mut pages = self.pages().peekable();
        std::iter::from_fn(move || {
            let mut run = AddrRange::page_of(pages.next()?, PageSize::Size4K);
            while let Some(next) = pages.next_if(|&next| run.last().checked_add(1) == Some(next)) {
                run = AddrRange::inclusive(run.first(), AddrRange::page_of(next, PageSize::Size4K).last())?;
            }
            Some(run)
        })
    }

    /// How many pages are dirty.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn mark_block(&self, clients: DirtyClients) {
        for run in self.runs() {
            let hva = self.slot.hva_of(run.first()).expect("a dirty page lies in its slot");
            let offset = self.slot.block.offset_of(hva).expect("a slot lies in its block");
            self.slot.block.mark_dirty(offset, run.bytes() as u64, clients);
        }
    }
}

fn set_bits(words: &[u64]) -> impl Iterator<Item = u64> {
    (0..).zip(words).flat_map(|(index, &word)| {
        let mut left = word;
        std::iter::from_fn(move || {
            let bit = (left != 0).then(|| u64::from(left.trailing_zeros()))?;
            left &= left - 1;
            Some(index * BITS + bit)
        })
    })
}
