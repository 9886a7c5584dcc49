//! Finding the tables: each once, whatever the entries say.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use memory_model::{AddrRange, Gpa, Hpa};

use super::finding::{Finding, Place, Violation};
use super::frames::FrameSet;
use super::input::Guest;
use super::report::{NO_LEVEL, Tally, Unchecked};
use super::template::Template;
use crate::access::Rights;
use crate::error::Error;
use crate::format::{Entry, Kind};
use crate::phys::PhysMemory;
use crate::walk::{Paging, Path, Step};

/// One root, and what its entries are compared with.
#[derive(Debug)]
pub(super) struct Root {
    pub guest: usize,
    /// Its index among the guest's.
    pub number: usize,
    pub paging: Paging,
    pub encryption: u64,
    /// All that a pointer to a table can grant.
    pub pointer: Rights,
    pub writable: Template,
    pub readonly: Template,
}

impl Root {
    /// What the entry is, without the encryption bit.
    pub fn decode(&self, level: u8, entry: u64) -> Entry {
        self.paging.format.decode(level, entry & !self.encryption)
    }
}

/// One table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub frame: u64,
    /// The first address that it translates.
    pub base: u64,
    /// Index of the table above, and the entry of it that leads here; a root is above itself.
    pub above: usize,
    pub entry: u64,
    /// Sum of the tables it points to: tells whether they have changed.
    pub pointers: u64,
    /// Index of the root.
    pub root: usize,
    pub index: u16,
    pub level: u8,
}

/// All tables of all guests, each once, in the order of the addresses they translate. 56 bytes a table.
#[derive(Debug)]
pub(super) struct Tree {
    pub roots: Vec<Root>,
    pub tables: Vec<Table>,
    /// The frames of the tables.
    pub frames: FrameSet,
    /// Indices of the tables, by frame.
    by_frame: Vec<usize>,
}

/// The roots of all guests.
pub(super) fn roots(guests: &[Guest<'_>]) -> Result<Vec<Root>, Error> {
    let mut roots = Vec::new();
    for (guest, Guest { roots: pagings, policy, .. }) in guests.iter().enumerate() {
        for (number, &paging) in pagings.iter().enumerate() {
            let format = &paging.format;
            if !matches!(format.kind(), Kind::Ept | Kind::Npt | Kind::Ia32e) {
                return Err(Error::Unverifiable { kind: format.kind() });
            }
            let template = |writable| Template::new(format, policy, writable);
            let (writable, readonly) = (template(true)?, template(false)?);
            let (encryption, pointer) = (policy.encryption, format.rights(format.table(0)?));
            roots.push(Root { guest, number, paging, encryption, pointer, writable, readonly });
        }
    }
    Ok(roots)
}

impl Tree {
    /// Follows all roots. What is wrong with the tree itself goes to `tally`. A table is followed where it is reached
    /// first, so this ends however the tables are linked.
    pub fn find(
        roots: Vec<Root>,
        memory: &impl PhysMemory,
        ram: AddrRange<Hpa>,
        tally: &mut Tally,
    ) -> Result<Self, Error> {
        let mut tree = Self { roots, tables: Vec::new(), frames: FrameSet::new(ram)?, by_frame: Vec::new() };
        for root in 0..tree.roots.len() {
            tree.follow(root, memory, tally);
        }
        let Self { tables, by_frame, .. } = &mut tree;
        by_frame.extend(0..tables.len());
        by_frame.sort_unstable_by_key(|&table| tables[table].frame);
        for finding in tally.findings.values_mut() {
            if let Violation::Reached { table, first, first_level, .. } = &mut finding.violation {
                (*first, *first_level) = tree.place_of(*table);
            }
        }
        Ok(tree)
    }

    /// The tables below one root, depth first.
    fn follow(&mut self, root: usize, memory: &impl PhysMemory, tally: &mut Tally) {
        let Root { guest, number, paging, .. } = &self.roots[root];
        let (guest, format) = (*guest, paging.format);
        let frame = paging.root;
        let bits = frame & !(format.max_phy_addr().last() & !0xfff);
        if bits != 0 {
            let violation = Violation::Root { root: frame, bits };
            let head = Finding { guest, root: *number, address: Gpa(0), path: Path::default(), violation };
            return tally.found(NO_LEVEL, 0, head, Path::default);
        }
        let above = self.tables.len();
        let top =
            Table { frame, base: 0, above, entry: 0, pointers: 0, root, index: 0, level: format.levels() };
        let mut open: Vec<(usize, usize, Box<[u64; 512]>)> = Vec::new();
        let mut next = self.enter(top, memory, tally);
        loop {
            if let Some((table, entries)) = next.take() {
                open.push((table, 0, entries));
            }
            let Some((above, index, entries)) = open.last_mut() else { return };
            let Some(&entry) = entries.get(*index) else {
                open.pop();
                continue;
            };
            let (above, at) = (*above, *index as u16);
            *index += 1;
            let Table { level, base, .. } = self.tables[above];
            if let Entry::Table(frame) = self.roots[root].decode(level, entry) {
                let level = level - 1;
                let pointers = &mut self.tables[above].pointers;
                *pointers = pointers.wrapping_add(frame);
                let base = base | u64::from(at) << format.shift(level + 1);
                let base = format.extend(base);
                next = self.enter(
                    Table { frame, base, above, entry, pointers: 0, root, index: at, level },
                    memory,
                    tally,
                );
            }
        }
    }

    /// Adds a table, unless it was there or is not in RAM; returns its entries if it may point to others.
    fn enter(
        &mut self,
        table: Table,
        memory: &impl PhysMemory,
        tally: &mut Tally,
    ) -> Option<(usize, Box<[u64; 512]>)> {
        let (hpa, level) = (Hpa(table.frame), table.level);
        if !self.frames.spans(hpa.page_number()) || memory.read_entry(table.frame).is_err() {
            self.refuse(&table, Violation::Outside { table: hpa, level }, tally);
            return None;
        }
        if !self.frames.insert(hpa.page_number()) {
            let (first, first_level) = (Place::default(), 0);
            self.refuse(&table, Violation::Reached { table: hpa, level, first, first_level }, tally);
            return None;
        }
        self.tables.push(table);
        if level == 1 {
            return None;
        }
        let mut entries = vec![0; 512].into_boxed_slice().try_into().unwrap_or_else(|_| Box::new([0; 512]));
        match memory.read_table(table.frame, &mut entries) {
            Ok(()) => Some((self.tables.len() - 1, entries)),
            // The pass over the table meets the same error and reports it.
            Err(_) => None,
        }
    }

    fn refuse(&self, table: &Table, violation: Violation, tally: &mut Tally) {
        let Root { guest, number, .. } = self.roots[table.root];
        let address = Gpa(table.base);
        let head = Finding { guest, root: number, address, path: Path::default(), violation };
        tally.found(table.level + 1, 0, head, || self.path_to(table));
    }

    /// The entries that lead to the table; none for a root.
    pub fn path_to(&self, table: &Table) -> Path {
        let mut steps = [Step::default(); crate::format::MAX_LEVEL];
        let mut depth = 0;
        let mut at = *table;
        while let Some(above) = self.tables.get(at.above).filter(|above| above.level > at.level) {
            let format = &self.roots[above.root].paging.format;
            steps[depth] = Step { entry: at.entry, ..format.step_at(above.level, above.frame, at.index) };
            depth += 1;
            at = *above;
        }
        let mut path = Path::default();
        steps[..depth].iter().rev().for_each(|&step| path.push(step));
        path
    }

    /// Where the table in that frame was reached, and its level.
    pub fn place_of(&self, frame: Hpa) -> (Place, u8) {
        let found = self.by_frame.binary_search_by_key(&frame.raw(), |&table| self.tables[table].frame);
        let Some(table) = found.ok().map(|at| &self.tables[self.by_frame[at]]) else {
            return (Place::default(), 0);
        };
        let Root { guest, number, .. } = self.roots[table.root];
        (Place { guest, root: number, address: Gpa(table.base) }, table.level)
    }

    /// Compares the tables of each guest with its owner's list.
    pub fn owned(&self, guests: &[Guest<'_>], tally: &mut Tally) {
        for (number, guest) in guests.iter().enumerate() {
            let Some(listed) = guest.tables else {
                tally.unchecked(Unchecked::NoOwner, 1);
                continue;
            };
            let mut listed = listed.to_vec();
            listed.sort_unstable();
            for table in self.tables.iter().filter(|table| self.roots[table.root].guest == number) {
                if listed.binary_search(&Hpa(table.frame)).is_err() {
                    self.refuse(table, Violation::NotOwned { table: Hpa(table.frame) }, tally);
                }
            }
            for &table in &listed {
                let reached =
                    self.frames.contains(table.page_number()) && self.place_of(table).0.guest == number;
                if !reached {
                    let violation = Violation::NotReached { table };
                    let head =
                        Finding { guest: number, root: 0, address: Gpa(0), path: Path::default(), violation };
                    tally.found(NO_LEVEL, table.raw(), head, Path::default);
                }
            }
        }
    }
}
