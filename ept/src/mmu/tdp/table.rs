//! One table, and where its entries are.

use core::ops::RangeInclusive;

use memory_model::{AddrRange, Gpa};

/// A table of the tree (`struct tdp_iter` keeps the same of it). Nothing else is known of one: no reverse map (rule H5),
/// no hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Table {
    pub frame: u64,
    pub level: u8,
    /// The first address that it translates.
    pub base: u64,
}

/// An entry, as it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Spot {
    pub table: Table,
    pub index: u16,
    pub spte: u64,
}

impl Table {
    pub const ENTRIES: u16 = 512;

    /// log2 of what one entry spans.
    const fn shift(self) -> u32 {
        12 + 9 * (self.level as u32 - 1)
    }

    /// The index of the entry for `gpa`, which it translates.
    #[inline]
    pub const fn index(self, gpa: Gpa) -> u16 {
        (gpa.raw() >> self.shift()) as u16 & (Self::ENTRIES - 1)
    }

    #[inline]
    pub const fn entry_address(self, index: u16) -> u64 {
        self.frame + index as u64 * 8
    }

    /// The first address of entry `index` (rule K4).
    #[inline]
    pub const fn gpa_of(self, index: u16) -> Gpa {
        Gpa(self.base | (index as u64) << self.shift())
    }

    /// The table that entry `index` points to.
    #[inline]
    pub const fn child(self, index: u16, frame: u64) -> Self {
        Self { frame, level: self.level - 1, base: self.gpa_of(index).raw() }
    }

    /// What it translates.
    pub fn range(self) -> AddrRange<Gpa> {
        let last = self.base | ((1 << (self.shift() + 9)) - 1);
        AddrRange::inclusive(Gpa(self.base), Gpa(last)).expect("a table ends behind its beginning")
    }

    /// The entries that share an address with `range`; none at all if the table does not.
    pub fn indices(self, range: AddrRange<Gpa>) -> RangeInclusive<u16> {
        match self.range().intersection(range) {
            Some(within) => self.index(within.first())..=self.index(within.last()),
            #[expect(clippy::reversed_empty_ranges, reason = "no entry")]
            None => 1..=0,
        }
    }
}

impl Spot {
    pub fn address(self) -> u64 {
        self.table.entry_address(self.index)
    }

    pub fn gpa(self) -> Gpa {
        self.table.gpa_of(self.index)
    }
}
