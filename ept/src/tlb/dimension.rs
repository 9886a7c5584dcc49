//! What a processor remembers of one tree of tables: pages, and tables on the way to them.

use crate::access::{Access, Rights};
use crate::fault::{Fault, Stop};
use crate::format::{Format, Role};
use crate::judge::{Found, judge};
use crate::phys::PhysMemory;
use crate::walk::{Flags, Leaf, Paging, Path, Start, walk_from};

use super::cache::{Cache, GLOBAL, Key, Space};

/// A remembered page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    leaf: Leaf,
    /// AND of the table pointers above, for the rules that look at them alone.
    tables: u64,
}

/// What a remembered page is to an access.
pub(super) enum Use {
    /// Its translation.
    Done(Leaf),
    /// Of no use: D must be set in memory first.
    Walk,
}

impl Known {
    /// `path` is that of the walk that found the leaf, from `from` on.
    pub(super) fn new(paging: &Paging, leaf: Leaf, from: Option<Start>, path: &Path, access: Access) -> Self {
        let above = path.iter().take(path.len().saturating_sub(1));
        let top = from.map_or(u64::MAX, |start| start.tables);
        let tables = above.fold(top, |tables, step| tables & paging.format.mergeable(step.entry));
        let mut leaf = leaf;
        leaf.entry = paging.format.marked(leaf.entry, true, access.writes());
        Self { leaf, tables }
    }

    /// The rights that are remembered decide, whatever the tables now say.
    #[inline]
    pub(super) fn judged(
        &self,
        paging: &Paging,
        address: u64,
        access: Access,
        flags: Flags,
    ) -> Result<Use, Fault> {
        let Self { leaf, tables } = *self;
        let format = &paging.format;
        let usual = !access.does.intersects(Rights::SHADOW_STACK | Rights::PAGING_WRITE)
            && !paging.has_keys()
            && format.demand(access, paging.controls).is_met(leaf.granted());
        if !usual {
            let found = Found { tables, granted: leaf.granted(), leaf: leaf.entry };
            if let Err(denial) = judge(paging, access, found) {
                return Err(Stop::Denied(denial).event(format, access, paging.controls));
            }
        }
        let unmarked = format.marked(leaf.entry, true, access.writes()) != leaf.entry;
        Ok(if unmarked && flags == Flags::Set { Use::Walk } else { Use::Done(leaf.at(address)) })
    }

    /// Whether it is a piece of the page around `address`.
    pub(super) fn maps(&self, first: u64, address: u64) -> bool {
        // `first` is the piece's own address: the page around it is the same as that around `address`.
        (first ^ address) & !(self.leaf.size.bytes() - 1) == 0
    }
}

/// The caches of one tree. `V` is what is known of a page of 4 KiB; a larger one is remembered piece by piece.
#[derive(Clone, Debug)]
pub(super) struct Dimension<V> {
    pub(super) pages: Cache<V>,
    /// Tables, by the addresses that lead to them.
    pub(super) tables: Cache<Start>,
}

/// The key of a page, which is as long as a page of level 1.
const fn page_key(space: Space, address: u64) -> Key {
    Key::new(space, 1, address >> 12)
}

/// The key of the table of that level on the way to `address`.
const fn table_key(paging: &Paging, space: Space, level: u8, address: u64) -> Key {
    Key::new(space, level, address >> paging.format.shift(level + 1))
}

impl<V: Copy> Dimension<V> {
    pub(super) fn new(entries: usize) -> Self {
        Self { pages: Cache::new(entries), tables: Cache::new(entries) }
    }

    /// The page around `address`: of that space, or global.
    #[inline]
    pub(super) fn page(&self, space: Space, address: u64) -> Option<V> {
        let global = || self.pages.get(page_key(Space { pcid: GLOBAL, ..space }, address));
        self.pages.get(page_key(space, address)).or_else(global)
    }

    /// The lowest table on the way to `address`.
    #[inline]
    pub(super) fn table(&self, paging: &Paging, space: Space, address: u64) -> Option<Start> {
        (1..paging.format.levels())
            .find_map(|level| self.tables.get(table_key(paging, space, level, address)))
    }

    pub(super) fn remember_page(&mut self, space: Space, address: u64, value: V, global: bool) {
        let pcid = if global { GLOBAL } else { space.pcid };
        self.pages.insert(page_key(Space { pcid, ..space }, address), value);
    }

    /// Remembers the tables of a walk that began at `from`.
    pub(super) fn remember_tables(
        &mut self,
        paging: &Paging,
        space: Space,
        address: u64,
        from: Option<Start>,
        path: &Path,
    ) {
        let mut tables = from.map_or(u64::MAX, |start| start.tables);
        for steps in path.windows(2) {
            let [above, step] = steps else { continue };
            tables &= paging.format.mergeable(above.entry);
            let start = Start { level: step.level, table: step.table, tables };
            self.tables.insert(table_key(paging, space, step.level, address), start);
        }
    }

    /// Forgets all that leads to `address`: what a fault there does (SDM vol. 3A, 4.10.4.1; vol. 3C, rule IV2).
    pub(super) fn forget_address(&mut self, paging: &Paging, space: Space, address: u64) {
        for pcid in [space.pcid, GLOBAL] {
            self.pages.remove(page_key(Space { pcid, ..space }, address));
        }
        for level in 1..paging.format.levels() {
            self.tables.remove(table_key(paging, space, level, address));
        }
    }

    /// Forgets whole address spaces.
    pub(super) fn forget_spaces(&mut self, gone: impl Fn(Space) -> bool) {
        self.pages.forget(|key, _| gone(key.space()));
        self.tables.forget(|key, _| gone(key.space()));
    }
}

impl Dimension<Known> {
    /// A walk through what is remembered. On a fault `path` is that of the entries read, if any were.
    #[expect(clippy::too_many_arguments, reason = "a walk's arguments, and the space they belong to")]
    #[inline]
    pub(super) fn translate<M: PhysMemory>(
        &mut self,
        path: &mut Path,
        memory: &M,
        paging: &Paging,
        (space, global_pages): (Space, bool),
        address: u64,
        access: Access,
        flags: Flags,
    ) -> Result<Leaf, Fault> {
        *path = Path::default();
        match self.page(space, address).map(|known| known.judged(paging, address, access, flags)) {
            Some(Ok(Use::Done(leaf))) => return Ok(leaf),
            Some(Err(fault)) => {
                self.forget_address(paging, space, address);
                return Err(fault);
            }
            Some(Ok(Use::Walk)) | None => {}
        }
        let from = self.table(paging, space, address);
        let outcome = walk_from(from, path, memory, paging, address, access, flags);
        match &outcome {
            // What a look finds is not remembered: its flags are not set.
            Ok(leaf) if flags == Flags::Set => {
                let global = global_pages && paging.format.is_global(leaf);
                let known = Known::new(paging, *leaf, from, path, access);
                self.remember_page(space, address, known, global);
                self.remember_tables(paging, space, address, from, path);
            }
            Ok(_) => {}
            Err(_) => self.forget_address(paging, space, address),
        }
        outcome
    }
}

impl Format {
    /// G of a leaf.
    pub(super) const fn is_global(&self, leaf: &Leaf) -> bool {
        leaf.entry & self.bits(Role::Global, leaf.size.level(), true) != 0
    }

    /// Whether guest tables may be walked only through pages with paging-write (rule X4). Such tables are remembered
    /// only once they are known to be good.
    pub(super) const fn has_guest_paging_verification(&self) -> bool {
        self.bits(Role::GuestPagingVerification, 1, true) != 0
    }
}
