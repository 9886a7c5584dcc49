//! Finding the tables: each once, whatever the entries say.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ops::RangeInclusive;

use memory_model::{AddrRange, Gpa, Gva, Hpa, PageSize};

use super::finding::{Finding, Input, Place, Violation};
use super::frames::FrameSet;
use super::input::{Guest, Shadow};
use super::met::Met;
use super::report::{NO_LEVEL, Tally, Unchecked};
use super::shadow::{Behind, GuestTables, Shadowed};
use super::slots::Stretch;
use super::template::Template;
use crate::access::Rights;
use crate::error::Error;
use crate::format::{Entry, Kind};
use crate::paging::Paging;
use crate::phys::PhysMemory;
use crate::walk::{Path, Step};

/// One root, and what its entries are compared with.
#[derive(Debug)]
pub(super) struct Root {
    pub guest: usize,
    /// Its index among the guest's.
    pub number: usize,
    pub paging: Paging,
    pub encryption: u64,
    /// What it shadows, if it does.
    pub shadow: Option<ShadowOf>,
    /// All that a pointer to a table can grant.
    pub pointer: Rights,
    pub writable: Template,
    pub readonly: Template,
    /// Whether frames of its leaves count: of a guest's first root, or of all its shadows if it has these alone.
    pub counts: bool,
}

/// What a shadow's root is the shadow of.
#[derive(Clone, Debug)]
pub(super) struct ShadowOf {
    /// The guest's own tables.
    pub guest: Paging,
    /// Those that are not kept in step, in order.
    unsync: Vec<Gpa>,
}

impl ShadowOf {
    fn new(shadow: &Shadow<'_>) -> Self {
        let page = |gpa: &Gpa| gpa.align_down(PageSize::Size4K);
        let mut unsync: Vec<_> = shadow.unsync.iter().map(page).collect();
        unsync.sort_unstable();
        Self { guest: shadow.guest, unsync }
    }

    pub fn is_synced(&self, table: Gpa) -> bool {
        self.unsync.binary_search(&table).is_err()
    }
}

impl Root {
    /// An address that its tables translate.
    pub fn input(&self, address: u64) -> Input {
        match self.shadow {
            None => Input::Gpa(Gpa(address)),
            Some(_) => Input::Gva(Gva(address)),
        }
    }

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
    /// Of a shadow table: one more than the index of what it shadows.
    pub shadowed: Option<NonZeroU32>,
    pub index: u16,
    pub level: u8,
    /// A shadow table that is here already, with something else behind it.
    pub again: bool,
}

/// All tables of all guests, in the order of the addresses they translate: each once, but shadow tables once for each
/// part of the guest's tables that they are the shadow of. 56 bytes a table.
#[derive(Debug)]
pub(super) struct Tree {
    pub roots: Vec<Root>,
    pub tables: Vec<Table>,
    /// The frames of the tables.
    pub frames: FrameSet,
    /// Indices of the tables, by frame.
    by_frame: Vec<usize>,
    /// What shadow tables are the shadow of.
    shadowed: Vec<Shadowed>,
    /// Shadow tables by frame, while they are looked for.
    shadows: BTreeMap<u64, Vec<usize>>,
    /// By guest, the page numbers of its tables whose shadow is kept in step.
    synced: BTreeSet<(usize, u64)>,
}

/// How many different parts of a guest's tables are followed below one shadow table.
const MOST_SHADOWED: usize = 16;

/// The roots of all guests.
pub(super) fn roots(guests: &[Guest<'_>]) -> Result<Vec<Root>, Error> {
    let mut roots = Vec::new();
    for (guest, Guest { roots: second, shadows, policy, .. }) in guests.iter().enumerate() {
        let no_second = second.is_empty();
        let second = second.iter().map(|&paging| (paging, None));
        let shadows = shadows.iter().map(|shadow| (shadow.paging, Some(ShadowOf::new(shadow))));
        for (number, (paging, shadow)) in second.chain(shadows).enumerate() {
            let format = &paging.format;
            if !matches!(format.kind(), Kind::Ept | Kind::Npt | Kind::Ia32e) {
                return Err(Error::Unverifiable { kind: format.kind() });
            }
            let template = |writable| Template::new(format, policy, writable);
            let (writable, readonly) = (template(true)?, template(false)?);
            let (encryption, pointer) = (policy.encryption, format.rights(format.table(0)?));
            let counts = number == 0 || shadow.is_some() && no_second;
            roots.push(Root {
                guest,
                number,
                paging,
                encryption,
                shadow,
                pointer,
                writable,
                readonly,
                counts,
            });
        }
    }
    Ok(roots)
}

/// What it is to reach a table again.
enum Again {
    /// No news: the same is behind it.
    Known,
    /// A shadow with something else behind it.
    Other,
    /// The same, once too often.
    TooMany,
    /// Tables form a tree.
    Wrong,
}

impl Tree {
    /// Follows all roots. What is wrong with the tree itself goes to `tally`. A table is followed where it is reached
    /// first, so this ends however the tables are linked.
    pub fn find(
        roots: Vec<Root>,
        (guests, spaces): (&[Guest<'_>], &[Vec<Stretch>]),
        memory: &impl PhysMemory,
        ram: AddrRange<Hpa>,
        tally: &mut Tally,
    ) -> Result<Self, Error> {
        let mut tree = Self {
            roots,
            tables: Vec::new(),
            frames: FrameSet::new(ram)?,
            by_frame: Vec::new(),
            shadowed: Vec::new(),
            shadows: BTreeMap::new(),
            synced: BTreeSet::new(),
        };
        for root in 0..tree.roots.len() {
            let Root { guest, ref shadow, .. } = tree.roots[root];
            let of = shadow.clone();
            let guest = (&guests[guest], &spaces[guest]);
            let shadow = of.as_ref().map(|of| GuestTables::new(memory, guest.0, guest.1, of));
            tree.follow(root, shadow.as_ref(), memory, tally);
        }
        let Self { tables, by_frame, .. } = &mut tree;
        by_frame.extend((0..tables.len()).filter(|&table| !tables[table].again));
        by_frame.sort_unstable_by_key(|&table| tables[table].frame);
        tree.shadows.clear();
        for finding in tally.findings.values_mut() {
            if let Violation::Reached { table, first, first_level, .. } = &mut finding.violation {
                (*first, *first_level) = tree.place_of(*table);
            }
        }
        Ok(tree)
    }

    /// No page of theirs has been met yet.
    pub fn unmet(&self, spaces: &[Vec<Stretch>]) -> Met {
        let of = |guest| move |root: &Root| root.guest == guest && root.shadow.is_some() && root.counts;
        Met::new(spaces, |guest| self.roots.iter().any(of(guest)))
    }

    /// The tables below one root, depth first.
    fn follow<M: PhysMemory>(
        &mut self,
        root: usize,
        shadow: Option<&GuestTables<'_, M>>,
        memory: &M,
        tally: &mut Tally,
    ) {
        let Root { guest, number, paging, .. } = &self.roots[root];
        let (guest, format) = (*guest, paging.format);
        let frame = paging.root;
        let bits = frame & !(format.max_phy_addr().last() & !0xfff);
        if bits != 0 {
            let violation = Violation::Root { root: frame, bits };
            let address = self.roots[root].input(0);
            let head = Finding { guest, root: *number, address, path: Path::default(), violation };
            return tally.found(NO_LEVEL, 0, head, Path::default);
        }
        let above = self.tables.len();
        let shadowed = shadow.map(|tables| self.roots[root].shadowed_root(tables));
        let top = Table {
            frame,
            base: 0,
            above,
            entry: 0,
            pointers: 0,
            root,
            shadowed: shadowed.and_then(|shadowed| self.add_shadowed(shadowed)),
            index: 0,
            level: format.levels(),
            again: false,
        };
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
            let table @ Table { level, base, .. } = self.tables[above];
            if let Entry::Table(frame) = self.roots[root].decode(level, entry) {
                let level = level - 1;
                let pointers = &mut self.tables[above].pointers;
                *pointers = pointers.wrapping_add(frame);
                let base = base | u64::from(at) << format.shift(level + 1);
                let base = format.extend(base);
                let shadowed = shadow.zip(self.shadowed(&table)).and_then(|(tables, shadowed)| {
                    let from = (level + 1, entry);
                    let shadowed = self.roots[root].shadowed_table(tables, shadowed, from, base);
                    self.add_shadowed(shadowed)
                });
                let table = Table {
                    frame,
                    base,
                    above,
                    entry,
                    pointers: 0,
                    root,
                    shadowed,
                    index: at,
                    level,
                    again: false,
                };
                next = self.enter(table, memory, tally);
            }
        }
    }

    /// Adds a table, unless it was there or is not in RAM; returns its entries if it may point to others.
    fn enter(
        &mut self,
        mut table: Table,
        memory: &impl PhysMemory,
        tally: &mut Tally,
    ) -> Option<(usize, Box<[u64; 512]>)> {
        let (hpa, level) = (Hpa(table.frame), table.level);
        if !self.frames.spans(hpa.page_number()) || memory.read_entry(table.frame).is_err() {
            self.refuse(&table, Violation::Outside { table: hpa, level }, tally);
            return None;
        }
        if !self.frames.insert(hpa.page_number()) {
            match self.again(&table) {
                Again::Known => return None,
                Again::Other => table.again = true,
                Again::TooMany => {
                    tally.unchecked(Unchecked::ShadowedOften, 1);
                    return None;
                }
                Again::Wrong => {
                    let (first, first_level) = (Place::default(), 0);
                    self.refuse(&table, Violation::Reached { table: hpa, level, first, first_level }, tally);
                    return None;
                }
            }
        }
        if let Some(Shadowed { behind, .. }) = self.shadowed(&table) {
            self.shadows.entry(table.frame).or_default().push(self.tables.len());
            let Root { guest, ref shadow, .. } = self.roots[table.root];
            if let Behind::Table { start, .. } = behind
                && shadow.as_ref().is_some_and(|of| of.is_synced(Gpa(start.table)))
            {
                self.synced.insert((guest, Gpa(start.table).page_number()));
            }
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

    /// A table that was reached before. Shadow tables of one guest may be, at the same level.
    fn again(&self, table: &Table) -> Again {
        let Some(before) = self.shadows.get(&table.frame).filter(|_| table.shadowed.is_some()) else {
            return Again::Wrong;
        };
        let guest = |table: &Table| self.roots[table.root].guest;
        let first = &self.tables[before[0]];
        if first.level != table.level || guest(first) != guest(table) {
            return Again::Wrong;
        }
        let of_root = || before.iter().map(|&at| &self.tables[at]).filter(|other| other.root == table.root);
        if of_root().any(|other| self.shadowed(other) == self.shadowed(table)) {
            Again::Known
        } else if of_root().count() == MOST_SHADOWED {
            Again::TooMany
        } else {
            Again::Other
        }
    }

    /// What the table is a shadow of, if it is one.
    pub fn shadowed(&self, table: &Table) -> Option<Shadowed> {
        table.shadowed.map(|number| self.shadowed[number.get() as usize - 1])
    }

    fn add_shadowed(&mut self, shadowed: Shadowed) -> Option<NonZeroU32> {
        if self.shadowed.last() != Some(&shadowed) {
            self.shadowed.push(shadowed);
        }
        NonZeroU32::new(u32::try_from(self.shadowed.len()).unwrap_or(0))
    }

    /// The first of the guest's tables in those pages whose shadow is kept in step.
    pub fn synced_table(&self, guest: usize, pages: RangeInclusive<u64>) -> Option<Gpa> {
        let first = self.synced.range((guest, *pages.start())..=(guest, *pages.end())).next();
        first.map(|&(_, page)| Gpa(page << 12))
    }

    fn refuse(&self, table: &Table, violation: Violation, tally: &mut Tally) {
        let Root { guest, number, .. } = self.roots[table.root];
        let address = self.roots[table.root].input(table.base);
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
        let root = &self.roots[table.root];
        let address = root.input(table.base);
        (Place { guest: root.guest, root: root.number, address }, table.level)
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
            let own = |table: &&Table| self.roots[table.root].guest == number && !table.again;
            for table in self.tables.iter().filter(own) {
                if listed.binary_search(&Hpa(table.frame)).is_err() {
                    self.refuse(table, Violation::NotOwned { table: Hpa(table.frame) }, tally);
                }
            }
            for &table in &listed {
                let reached =
                    self.frames.contains(table.page_number()) && self.place_of(table).0.guest == number;
                if !reached {
                    let violation = Violation::NotReached { table };
                    let head = Finding {
                        guest: number,
                        root: 0,
                        address: Input::default(),
                        path: Path::default(),
                        violation,
                    };
                    tally.found(NO_LEVEL, table.raw(), head, Path::default);
                }
            }
        }
    }
}
