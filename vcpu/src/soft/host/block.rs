//! A RAM block as the process has it mapped, with the page tables for it (Linux's VMA).

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::{hint, thread};

use memory_model::{AddrRange, Hva, PageSize, RamBlock};

use super::pte::Pte;
use super::record::PageId;

/// Entries of a page table: those of 2 MiB.
const ENTRIES: u64 = 512;
const FRAME: u64 = PageSize::Size4K.bytes();

type PageTable = Box<[AtomicU64; ENTRIES as usize]>;

/// A mapped block.
///
/// An entry of its tables is changed by whoever has claimed it, which is a bit in the entry: a fault claims what it
/// fills, an event what it changes. Entries are claimed by ascending address, and for a few instructions only: never
/// while anybody is notified, so that nobody waits long.
pub(super) struct MappedBlock {
    pub(super) ram: Arc<RamBlock>,
    /// Its place among the blocks of the process.
    number: u32,
    /// The largest pages it gets where they fit.
    pub(super) largest: PageSize,
    /// A table for each 2 MiB from the block's start on, made when it is first needed.
    tables: Box<[OnceLock<PageTable>]>,
}

/// A mapping whose entries one has claimed, all of them. They are free again when it is put back.
#[must_use]
pub(super) struct Claimed<'a> {
    block: &'a MappedBlock,
    /// Its first page in the block.
    pub(super) first: u64,
    /// Its first entry; the size is in it.
    pub(super) pte: Pte,
}

impl MappedBlock {
    pub(super) fn new(ram: Arc<RamBlock>, number: u32, largest: PageSize) -> Self {
        let tables = ram.max_size().div_ceil(ENTRIES * FRAME);
        Self { ram, number, largest, tables: (0..tables).map(|_| OnceLock::new()).collect() }
    }

    /// The page at `hva`, if it lies in the block.
    #[inline]
    pub(super) fn page_at(&self, hva: Hva) -> Option<u64> {
        Some(self.ram.offset_of(hva)? / FRAME)
    }

    pub(super) fn hva_of(&self, page: u64) -> Hva {
        Hva(self.ram.hva().0 + page * FRAME)
    }

    pub(super) fn id(&self, page: u64) -> PageId {
        PageId { block: self.number, page }
    }

    /// How many pages it has now.
    pub(super) fn pages(&self) -> u64 {
        self.ram.size() / FRAME
    }

    /// The addresses of pages.
    pub(super) fn range_of(&self, pages: &Range<u64>) -> AddrRange<Hva> {
        let (first, last) = (self.hva_of(pages.start), Hva(self.hva_of(pages.end).0 - 1));
        AddrRange::inclusive(first, last).unwrap_or_else(|| AddrRange::page_of(first, PageSize::Size4K))
    }

    /// The addresses of all that it could grow to.
    pub(super) fn range(&self) -> Option<AddrRange<Hva>> {
        AddrRange::new(self.ram.hva(), self.ram.max_size().into())
    }

    /// The pages of the mapping of that size that could be around `page`, if it lies in the block.
    pub(super) fn around(&self, page: u64, size: PageSize) -> Option<Range<u64>> {
        let first = page.checked_sub(self.hva_of(page).page_offset(size) / FRAME)?;
        let end = first + size.bytes() / FRAME;
        (end <= self.ram.max_size() / FRAME).then_some(first..end)
    }

    /// The entry, as it is or was just now.
    pub(super) fn peek(&self, page: u64) -> Pte {
        let table = self.tables.get((page / ENTRIES) as usize).and_then(OnceLock::get);
        let entry = table.map_or(0, |table| table[(page % ENTRIES) as usize].load(Ordering::Acquire));
        Pte::from_bits(entry)
    }

    /// The place of the entry. The page lies in the block.
    #[inline]
    pub(super) fn entry(&self, page: u64) -> &AtomicU64 {
        let new = || Box::new([const { AtomicU64::new(0) }; ENTRIES as usize]);
        &self.tables[(page / ENTRIES) as usize].get_or_init(new)[(page % ENTRIES) as usize]
    }

    /// Waits until nobody else changes the entry, and claims it; what it holds.
    pub(super) fn claim(&self, page: u64) -> Pte {
        let entry = self.entry(page);
        let mut patience = Patience::default();
        loop {
            let found = Pte::from_bits(entry.load(Ordering::Relaxed));
            if !found.is_busy() {
                let claimed = entry.compare_exchange_weak(
                    found.bits(),
                    found.busy().bits(),
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if claimed.is_ok() {
                    return found;
                }
            }
            patience.wait();
        }
    }

    /// Ends a claim: the entry is `pte` now.
    pub(super) fn put(&self, page: u64, pte: Pte) {
        self.entry(page).store(pte.bits(), Ordering::Release);
    }

    /// Claims the whole mapping around `page`; where there is none, the page.
    pub(super) fn claim_mapping(&self, page: u64) -> Claimed<'_> {
        loop {
            let seen = self.peek(page);
            let size = if seen.is_present() { seen.size() } else { PageSize::Size4K };
            let pages = self.around(page, size).unwrap_or(page..page + 1);
            let first = pages.start;
            let pte = self.claim(first);
            let now = if pte.is_present() { pte.size() } else { PageSize::Size4K };
            if now != size {
                self.put(first, pte);
                continue;
            }
            // Nobody can change the rest of a mapping without its first entry.
            for page in pages.skip(1) {
                self.claim(page);
            }
            return Claimed { block: self, first, pte };
        }
    }

    /// Claims pages that become one mapping, if `fit` holds for each entry; none is claimed if not.
    pub(super) fn claim_run(&self, pages: Range<u64>, fit: impl Fn(Pte) -> bool) -> bool {
        for page in pages.clone() {
            let pte = self.claim(page);
            if fit(pte) {
                continue;
            }
            self.put(page, pte);
            for claimed in pages.start..page {
                self.put(claimed, self.claimed(claimed));
            }
            return false;
        }
        true
    }

    /// What an entry holds that the caller has claimed.
    pub(super) fn claimed(&self, page: u64) -> Pte {
        self.peek(page).idle()
    }
}

impl Claimed<'_> {
    /// Its pages.
    pub(super) fn pages(&self) -> Range<u64> {
        let size = if self.pte.is_present() { self.pte.size() } else { PageSize::Size4K };
        self.first..self.first + size.bytes() / FRAME
    }

    /// Whether it has more than 4 KiB.
    pub(super) fn is_large(&self) -> bool {
        self.pages().end - self.first > 1
    }

    /// Ends the claim: the first entry is `pte` now, and the others follow from it.
    pub(super) fn put(self, pte: Pte) {
        for (index, page) in (0..).zip(self.pages()) {
            self.block.put(page, pte.further(index));
        }
    }

    /// Ends the claim and leaves all as it is.
    pub(super) fn leave(self) {
        let pte = self.pte;
        self.put(pte);
    }
}

/// How to wait for somebody who needs a few instructions more, but may have lost its processor.
#[derive(Default)]
pub(super) struct Patience(u32);

impl Patience {
    pub(super) fn wait(&mut self) {
        self.0 += 1;
        if self.0.is_multiple_of(64) { thread::yield_now() } else { hint::spin_loop() }
    }
}
