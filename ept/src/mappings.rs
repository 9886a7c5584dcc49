//! All pages that a tree of tables maps, in order of their addresses.

use memory_model::{AddrRange, Address, PageSize};

use crate::access::Rights;
use crate::format::{Entry, Kind, MAX_LEVEL};
use crate::paging::{Paging, Start};
use crate::phys::PhysMemory;
use crate::walk::{Plain, Step, read};

/// One page that a table maps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mapping {
    /// The first input address.
    pub address: u64,
    /// Size of the page.
    pub size: PageSize,
    /// The first output address.
    pub frame: u64,
    /// What all entries on the way grant together.
    pub rights: Rights,
    /// Where the leaf is, and its raw value.
    pub step: Step,
}

/// Iterates over the pages that `paging` maps, lowest address first. Entries that are absent or malformed, and
/// tables where no memory is, map nothing. Memory may change under way: each entry is read once.
pub fn mappings<'a, M: PhysMemory>(memory: &'a M, paging: &'a Paging) -> Mappings<'a, M> {
    Mappings::between(memory, paging, 0, u64::MAX)
}

/// See [`mappings`].
#[derive(Debug)]
pub struct Mappings<'a, M> {
    memory: &'a M,
    paging: &'a Paging,
    open: [Open; MAX_LEVEL],
    depth: usize,
    /// The addresses asked for, cut to the width of the table.
    first: u64,
    last: u64,
}

impl<'a, M: PhysMemory> Mappings<'a, M> {
    fn between(memory: &'a M, paging: &'a Paging, first: u64, last: u64) -> Self {
        let mut mappings = Self { memory, paging, open: [Open::default(); MAX_LEVEL], depth: 0, first, last };
        // PAE paging has four tables at the top, and the first is to be read first.
        let tops: &[u64] =
            if paging.format.kind() == Kind::Pae { &[3 << 30, 2 << 30, 1 << 30, 0] } else { &[0] };
        for &base in tops {
            if let Some(Start { table: root, .. }) = paging.start(base) {
                mappings.open(root, paging.format.levels(), base, u64::MAX);
            }
        }
        mappings
    }

    /// Only the pages that share an address with `range`, again from the first on.
    pub fn within<A: Address>(self, range: AddrRange<A>) -> Self {
        let format = &self.paging.format;
        let inside = u64::MAX >> (64 - format.input_bits());
        // Addresses that are not translated lie above the lower canonical half, or above all.
        let edge = if format.translates(inside) { inside } else { inside >> 1 } + 1;
        let cut = |address: u64, beyond| if format.translates(address) { address & inside } else { beyond };
        let (first, last) = (cut(range.first().raw(), edge), cut(range.last().raw(), edge - 1));
        Self::between(self.memory, self.paging, first, last)
    }

    /// Begins to read a table, where `first` lies in it or before it.
    fn open(&mut self, table: u64, level: u8, base: u64, merged: u64) {
        let format = &self.paging.format;
        let next = self.first.saturating_sub(base) >> format.shift(level);
        let next = next.min(format.entries().into()) as u16;
        self.open[self.depth] = Open { table, level, next, base, merged };
        self.depth += 1;
    }
}

/// A table that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Open {
    table: u64,
    level: u8,
    next: u16,
    base: u64,
    merged: u64,
}

impl<M: PhysMemory> Iterator for Mappings<'_, M> {
    type Item = Mapping;

    fn next(&mut self) -> Option<Mapping> {
        let format = &self.paging.format;
        while let Some(top) = self.depth.checked_sub(1) {
            let Open { table, level, next: index, base, merged } = self.open[top];
            let base = base | u64::from(index) << format.shift(level);
            if index >= format.entries() || base > self.last {
                self.depth = top;
                continue;
            }
            self.open[top].next += 1;
            let mut step = format.step_at(level, table, index);
            let Ok(entry) = read(&mut Plain(self.memory), step) else { continue };
            step.entry = entry;
            let merged = merged & format.mergeable(entry);
            match format.decode(level, entry) {
                Entry::Absent | Entry::Malformed(_) => {}
                Entry::Table(table) => self.open(table, level - 1, base, merged),
                Entry::Leaf(frame, size) => {
                    let rights = format.merged_rights(merged, entry);
                    return Some(Mapping { address: format.extend(base), size, frame, rights, step });
                }
            }
        }
        None
    }
}
