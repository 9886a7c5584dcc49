//! What is remembered and what the tables say now, side by side.

use alloc::vec::Vec;
use core::fmt;

use memory_model::Gva;

use crate::access::{Access, Rights};
use crate::format::Caching;
use crate::nested::nested_walk;
use crate::paging::{Paging, Start};
use crate::phys::PhysMemory;
use crate::walk::{Flags, Path, walk};

use super::Tlb;
use super::cache::{Cache, Key, Space};
use super::known::Known;
use super::translate::{Combined, GuestTable};

/// An address space, and the tables that now translate it.
#[derive(Clone, Copy, Debug)]
pub struct Mapped {
    /// The VPID; 0 where there is none.
    pub vpid: u16,
    /// The PCID; 0 where there is none.
    pub pcid: u16,
    /// From linear addresses; `None` for guest-physical ones alone.
    pub guest: Option<Paging>,
    /// From guest-physical addresses; `None` without a second level.
    pub second: Option<Paging>,
}

/// A page or a table that a processor remembers, and that the tables in memory do not give, or not with all that it
/// takes: another frame, fewer rights, another memory type, or A or D clear (rules IV1, A3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stale {
    /// VPID of the address; 0 of a guest-physical one.
    pub vpid: u16,
    /// Its PCID; `None` for a global page.
    pub pcid: Option<u16>,
    /// Root of the second level behind it (EPTP bits 51:12), if there is one.
    pub second: Option<u64>,
    /// Whether the address is linear; guest-physical otherwise.
    pub linear: bool,
    /// The first address of the page of 4 KiB, or of what the table translates.
    pub address: u64,
    /// What is remembered.
    pub remembered: Translation,
    /// What the tables now say; `None` if nothing.
    pub present: Option<Translation>,
}

/// What an address is translated to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translation {
    /// A page.
    Page {
        /// Host-physical address of these 4 KiB, or physical address without a second level.
        frame: u64,
        /// What all levels grant together.
        rights: Rights,
        /// The kind of memory, as the leaf says it: the second level's, if there is one.
        caching: Caching,
        /// A is set on the way; hardware need not set it.
        accessed: bool,
        /// D is set in the leaf, of both levels if there are two; hardware need not set it.
        dirty: bool,
    },
    /// A table on the way.
    Table {
        /// Its level: 4 PML4, 3 PDPT, 2 PD, 1 PT.
        level: u8,
        /// Its address: guest-physical if it is a guest's.
        table: u64,
        /// Host-physical address of a guest's table behind a second level.
        host: Option<u64>,
        /// What the pointers to it grant together.
        rights: Rights,
    },
}

impl fmt::Display for Translation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page { frame, rights, caching, accessed, dirty } => {
                let flags = if *dirty { ", D" } else { "" };
                let accessed = if *accessed { ", A" } else { "" };
                write!(f, "page {frame:#x} {rights:?}, {caching:?}{accessed}{flags}")
            }
            Self::Table { level, table, host: None, rights } => {
                write!(f, "level {level} table {table:#x} {rights:?}")
            }
            Self::Table { level, table, host: Some(host), rights } => {
                write!(f, "level {level} table {table:#x} at {host:#x} {rights:?}")
            }
        }
    }
}

impl Translation {
    /// Whether `self` is no more than `present`: new grants need no invalidation (rule IV2).
    fn is_within(self, present: Self) -> bool {
        match (self, present) {
            (
                Self::Page { frame, rights, caching, accessed, dirty },
                Self::Page { frame: now, rights: granted, caching: kind, accessed: a, dirty: d },
            ) => frame == now && granted.contains(rights) && caching == kind && accessed <= a && dirty <= d,
            (
                Self::Table { level, table, host, rights },
                Self::Table { level: at, table: now, host: there, rights: granted },
            ) => (level, table, host) == (at, now, there) && granted.contains(rights),
            _ => false,
        }
    }
}

/// What came of a comparison.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Staleness {
    /// All that is stale, by address space and address.
    pub stale: Vec<Stale>,
    /// Pages and tables compared.
    pub compared: u64,
    /// Those remembered for address spaces of which nobody has said what translates them.
    pub unknown: u64,
}

/// An access that asks for nothing, so that the entries alone decide.
const LOOK: Access = Access { does: Rights::empty(), user: false, ac: false };

impl Tlb {
    /// Compares all that is remembered with the tables as they are: with every invalidation made that the changes since
    /// have called for, nothing is stale. A global page must be one of some PCID of its VPID.
    pub fn stale(&self, memory: &impl PhysMemory, spaces: &[Mapped]) -> Staleness {
        let Self { linear, physical, combined } = self;
        let mut found = Comparison { memory, spaces, result: Staleness::default() };
        found.pages(&linear.pages, true, |known, tables, at| Some(page(tables.guest?, known, at)));
        let start = |start: &Start| (*start, None);
        let guest_table = |table: &GuestTable| (table.start, Some(table.host));
        found.tables(&linear.tables, start, true, |tables| tables.guest);
        found.pages(&physical.pages, false, |known, tables, at| Some(page(tables.second?, known, at)));
        found.tables(&physical.tables, start, false, |tables| tables.second);
        found.pages(&combined.pages, true, |known, tables, at| known.translation(tables, at));
        found.tables(&combined.tables, guest_table, true, |tables| tables.guest);
        let mut result = found.result;
        result.stale.sort_by_key(|stale| (stale.vpid, stale.pcid, stale.second, stale.linear, stale.address));
        result
    }
}

struct Comparison<'a, M> {
    memory: &'a M,
    spaces: &'a [Mapped],
    result: Staleness,
}

impl<M: PhysMemory> Comparison<'_, M> {
    fn pages<V: Copy>(
        &mut self,
        pages: &Cache<V>,
        linear: bool,
        remembered: impl Fn(&V, &Mapped, u64) -> Option<Translation>,
    ) {
        for (key, value) in pages.iter() {
            let address = key.address();
            self.compare(key, linear, address, |memory, tables| {
                Some((remembered(value, tables, address)?, tables.page(memory, linear, address)))
            });
        }
    }

    fn tables<T: Copy>(
        &mut self,
        tables: &Cache<T>,
        known: impl Fn(&T) -> (Start, Option<u64>),
        linear: bool,
        paging: impl Fn(&Mapped) -> Option<Paging>,
    ) {
        for (key, table) in tables.iter() {
            let (start, host) = known(table);
            let of = |mapped: &Mapped| paging(mapped).map(|paging| paging.format);
            // All tables of a space have one format.
            let format = self.of(key.space(), linear).find_map(of);
            let shift = format.map_or(12, |format| format.shift(key.level() + 1));
            let address = key.number() << shift;
            self.compare(key, linear, address, |memory, tables| {
                let present = tables.table(memory, linear, address, start.level);
                Some((self::table(&paging(tables)?, start, host), present))
            });
        }
    }

    /// The tables of that space.
    fn of(&self, space: Space, linear: bool) -> impl Iterator<Item = &Mapped> {
        self.spaces.iter().filter(move |mapped| mapped.is_of(space, linear))
    }

    /// Compares with the tables of all address spaces that the key may be of: one that gives it is enough.
    fn compare(
        &mut self,
        key: Key,
        linear: bool,
        address: u64,
        both: impl Fn(&M, &Mapped) -> Option<(Translation, Option<Translation>)>,
    ) {
        let space = key.space();
        let pairs: Vec<_> = self.of(space, linear).filter_map(|tables| both(self.memory, tables)).collect();
        let Some(&(remembered, present)) = pairs.first() else {
            self.result.unknown += 1;
            return;
        };
        self.result.compared += 1;
        let given = |&(remembered, present): &(Translation, Option<Translation>)| {
            present.is_some_and(|present| remembered.is_within(present))
        };
        if !pairs.iter().any(given) {
            let (second, vpid, pcid) = (space.second(), space.vpid(), space.pcid());
            self.result.stale.push(Stale { vpid, pcid, second, linear, address, remembered, present });
        }
    }
}

impl Mapped {
    fn is_of(&self, space: Space, linear: bool) -> bool {
        let root = |second: Paging| second.root & 0x000f_ffff_ffff_f000;
        let named = self.vpid == space.vpid() && space.pcid().is_none_or(|pcid| pcid == self.pcid);
        self.second.map(root) == space.second() && (!linear || named && self.guest.is_some())
    }

    /// The page at that address now.
    fn page<M: PhysMemory>(&self, memory: &M, linear: bool, address: u64) -> Option<Translation> {
        let (first, second) = match (self.guest, self.second) {
            (Some(guest), Some(second)) if linear => {
                let nested = nested_walk(memory, Some(&guest), &second, Gva(address), LOOK, Flags::Keep);
                let leaf = nested.outcome.ok()?;
                let flags = |of: &Paging, path: &Path| of.marks(path);
                let (a, d) = flags(&guest, &nested.guest);
                let (also_a, also_d) = flags(&second, &nested.second);
                return Some(Translation::Page {
                    frame: leaf.hpa.raw(),
                    rights: leaf.rights(),
                    caching: leaf.second.caching(),
                    accessed: a && also_a,
                    dirty: d && also_d,
                });
            }
            (guest, second) => (guest, second),
        };
        let paging = if linear { first? } else { second? };
        let found = walk(memory, &paging, address, LOOK, Flags::Keep);
        let leaf = found.outcome.ok()?;
        let (accessed, dirty) = paging.marks(&found.path);
        Some(Translation::Page {
            frame: leaf.address,
            rights: leaf.rights(),
            caching: leaf.caching(),
            accessed,
            dirty,
        })
    }

    /// The table of that level on the way to the address now.
    fn table<M: PhysMemory>(&self, memory: &M, linear: bool, address: u64, level: u8) -> Option<Translation> {
        let (paging, path) = match (linear, self.guest, self.second) {
            (true, Some(guest), Some(second)) => {
                (guest, nested_walk(memory, Some(&guest), &second, Gva(address), LOOK, Flags::Keep).guest)
            }
            (true, Some(paging), None) | (false, _, Some(paging)) => {
                (paging, walk(memory, &paging, address, LOOK, Flags::Keep).path)
            }
            _ => return None,
        };
        let depth = path.iter().position(|step| step.level == level)?;
        let above = |tables, entry| tables & paging.format.mergeable(entry);
        let tables = path[..depth].iter().map(|step| step.entry).fold(u64::MAX, above);
        let table = path[depth].table;
        let host = match self.second {
            Some(second) if linear => {
                Some(walk(memory, &second, table, LOOK, Flags::Keep).outcome.ok()?.address)
            }
            _ => None,
        };
        Some(self::table(&paging, Start { level, table, tables }, host))
    }
}

impl Paging {
    /// Whether A is set all along the path, and D at its end; so they count where hardware sets none.
    fn marks(&self, path: &Path) -> (bool, bool) {
        let format = &self.format;
        let accessed = path.iter().all(|step| format.marked(step.entry, false, false) == step.entry);
        let dirty = path.last().is_some_and(|step| format.marked(step.entry, true, true) == step.entry);
        (accessed, dirty)
    }
}

fn table(paging: &Paging, start: Start, host: Option<u64>) -> Translation {
    let Start { level, table, tables } = start;
    let format = &paging.format;
    let rights = format.kind().rights(format.granted(tables, 0));
    Translation::Table { level, table, host, rights }
}

/// A remembered page of one dimension, for an address at which 4 KiB of it begin.
fn page(paging: Paging, known: &Known, address: u64) -> Translation {
    let leaf = known.at(&paging.format, address);
    Translation::Page {
        frame: leaf.address,
        rights: leaf.rights(),
        caching: leaf.caching(),
        accessed: true,
        dirty: paging.format.marked(leaf.entry, true, true) == leaf.entry,
    }
}

impl Combined {
    fn translation(&self, tables: &Mapped, address: u64) -> Option<Translation> {
        let (guest, second) = (tables.guest?, tables.second?);
        let first = self.guest.at(&guest.format, address);
        let leaf = self.second.at(&second.format, first.address);
        let dirty = |paging: &Paging, entry| paging.format.marked(entry, true, true) == entry;
        Some(Translation::Page {
            frame: leaf.address,
            rights: first.rights() & (leaf.rights() | Rights::USER),
            caching: leaf.caching(),
            accessed: true,
            dirty: dirty(&guest, first.entry) && dirty(&second, leaf.entry),
        })
    }
}
