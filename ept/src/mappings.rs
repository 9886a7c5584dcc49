//! All pages that a tree of tables maps, in order of their addresses.

use memory_model::PageSize;

use crate::access::Rights;
use crate::format::{Entry, MAX_LEVEL};
use crate::phys::PhysMemory;
use crate::walk::{Paging, Step};

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
    let mut mappings = Mappings { memory, paging, open: [Open::default(); MAX_LEVEL], depth: 1 };
    mappings.open[0] =
        Open { table: paging.root, level: paging.format.levels(), next: 0, base: 0, merged: u64::MAX };
    mappings
}

/// See [`mappings`].
#[derive(Debug)]
pub struct Mappings<'a, M> {
    memory: &'a M,
    paging: &'a Paging,
    open: [Open; MAX_LEVEL],
    depth: usize,
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
            let open = &mut self.open[top];
            if open.next == 512 {
                self.depth = top;
                continue;
            }
            let Open { table, level, next: index, base, merged } = *open;
            open.next += 1;
            let mut step = format.step_at(level, table, index);
            let Ok(entry) = self.memory.read_entry(step.entry_address()) else { continue };
            step.entry = entry;
            let base = base | u64::from(index) << format.shift(level);
            let merged = merged & format.mergeable(entry);
            match format.decode(level, entry) {
                Entry::Absent | Entry::Malformed(_) => {}
                Entry::Table(table) => {
                    self.open[self.depth] = Open { table, level: level - 1, next: 0, base, merged };
                    self.depth += 1;
                }
                Entry::Leaf(frame, size) => {
                    let rights = format.merged_rights(merged, entry);
                    return Some(Mapping { address: format.extend(base), size, frame, rights, step });
                }
            }
        }
        None
    }
}
