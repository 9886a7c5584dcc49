//! What 4 KiB of a frame are used for, in a word (Linux's `struct page`).

use super::pte::Pte;

/// A page of a process: which mapped block, and which page of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct PageId {
    /// The block's place among those of the process: below 2^20.
    pub block: u32,
    /// The page's number in the block: below 2^36.
    pub page: u64,
}

/// What 4 KiB of a frame are used for.
///
/// | bits | meaning |
/// |---|---|
/// | 2:0 | the kind |
/// | 3, 4 | page: the process may not write, may not reach it |
/// | 43:8, 63:44 | page: which one of which block |
/// | 63:8 | table, shared: where its bytes are; free: the next free frame |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record(u64);

/// What a record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Use {
    /// Nothing.
    Free,
    /// A page of a block. Its bytes are the block's.
    Page(PageId),
    /// A table, with bytes of its own.
    Table(u64),
    /// Several pages with the same bytes: a copy of them.
    Shared(u64),
    /// A table that was given back, empty: walkers may be on their way to it still.
    Retired(u64),
    /// A broken frame: never used again.
    Poisoned,
}

const KIND: u64 = 0b111;
const PAGE: u64 = 1;
const TABLE: u64 = 2;
const SHARED: u64 = 3;
const RETIRED: u64 = 4;
const POISONED: u64 = 5;
const READ_ONLY: u64 = 1 << 3;
const NO_ACCESS: u64 = 1 << 4;
const VALUE: u32 = 8;
const BLOCK: u32 = 44;

impl Record {
    pub(super) const FREE: Self = Self(0);
    pub(super) const POISONED: Self = Self(POISONED);

    /// The frame of a page whose entry is to be `pte`.
    pub(super) fn page(id: PageId, pte: Pte) -> Self {
        let rights = [(pte.is_read_only(), READ_ONLY), (pte.is_no_access(), NO_ACCESS)];
        let rights = rights.into_iter().filter(|(denied, _)| *denied).fold(0, |bits, (_, bit)| bits | bit);
        Self(PAGE | rights | id.page << VALUE | u64::from(id.block) << BLOCK)
    }

    pub(super) fn table(bytes: u64) -> Self {
        Self(TABLE | bytes << VALUE)
    }

    pub(super) fn shared(bytes: u64) -> Self {
        Self(SHARED | bytes << VALUE)
    }

    pub(super) fn retired(bytes: u64) -> Self {
        Self(RETIRED | bytes << VALUE)
    }

    /// A free frame, and what the next one is called on the list of free ones.
    pub(super) fn free_before(next: u32) -> Self {
        Self(u64::from(next) << VALUE)
    }

    pub(super) fn next_free(self) -> u32 {
        (self.0 >> VALUE) as u32
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    #[inline]
    pub(super) fn usage(self) -> Use {
        let value = self.0 >> VALUE;
        match self.0 & KIND {
            PAGE => Use::Page(PageId {
                block: (self.0 >> BLOCK) as u32,
                page: value & ((1 << (BLOCK - VALUE)) - 1),
            }),
            TABLE => Use::Table(value),
            SHARED => Use::Shared(value),
            RETIRED => Use::Retired(value),
            POISONED => Use::Poisoned,
            _ => Use::Free,
        }
    }

    /// Whether the page may not be written.
    #[inline]
    pub(super) fn is_read_only(self) -> bool {
        self.0 & READ_ONLY != 0
    }

    /// Whether the page may not be reached at all.
    #[inline]
    pub(super) fn is_no_access(self) -> bool {
        self.0 & NO_ACCESS != 0
    }
}
