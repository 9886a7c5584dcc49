//! The caches of one tree of tables.

use crate::access::Access;
use crate::fault::Fault;
use crate::paging::{Paging, Start};
use crate::phys::PhysMemory;
use crate::quick::Ask;
use crate::walk::{Flags, Leaf, Path, Step, walk_from};

use super::cache::{Cache, Key, Space};
use super::known::{Known, Use};

/// Pages and the tables they are in. `V` is what is known of a page of 4 KiB; a larger one is remembered piece by piece.
#[derive(Clone, Debug)]
pub(super) struct Dimension<V, T> {
    pub(super) pages: Cache<V>,
    /// For each stretch of addresses, the lowest table on the way to them.
    pub(super) tables: Cache<T>,
    /// Whether there has been a global page.
    global_pages: bool,
}

#[inline]
const fn page_key(space: Space, address: u64) -> Key {
    Key::new(space, 0, address >> 12)
}

/// The key of the table of that level.
#[inline]
const fn table_key(paging: &Paging, space: Space, level: u8, address: u64) -> Key {
    Key::new(space, level, address >> paging.format.shift(level + 1))
}

impl<V: Copy, T: Copy> Dimension<V, T> {
    pub(super) fn new(pages: usize, tables: usize) -> Self {
        Self { pages: Cache::new(pages), tables: Cache::new(tables), global_pages: false }
    }

    /// The page around `address`: of that space, or global.
    #[inline(always)]
    pub(super) fn page(&self, space: Space, address: u64) -> Option<&V> {
        let mut key = page_key(space, address);
        if self.global_pages && self.pages.get(key).is_none() {
            key = page_key(space.global(), address);
        }
        self.pages.get(key)
    }

    /// The table of level 1 on the way to `address`.
    #[inline(always)]
    pub(super) fn lowest_table(&self, paging: &Paging, space: Space, address: u64) -> Option<T> {
        self.tables.get(table_key(paging, space, 1, address)).copied()
    }

    /// The lowest table on the way to `address`.
    #[inline]
    pub(super) fn table(&self, paging: &Paging, space: Space, address: u64) -> Option<T> {
        (1..paging.format.levels())
            .find_map(|level| self.tables.get(table_key(paging, space, level, address)).copied())
    }

    #[inline]
    pub(super) fn remember_page(&mut self, space: Space, address: u64, value: V, global: bool) {
        self.global_pages |= global;
        let space = if global { space.global() } else { space };
        self.pages.insert(page_key(space, address), value);
    }

    #[inline]
    pub(super) fn remember_table(
        &mut self,
        paging: &Paging,
        space: Space,
        address: u64,
        (level, table): (u8, T),
    ) {
        if level < paging.format.levels() {
            self.tables.insert(table_key(paging, space, level, address), table);
        }
    }

    /// Forgets all that leads to `address`: what a fault there does (SDM vol. 3A, 4.10.4.1; vol. 3C, rule IV2).
    pub(super) fn forget_address(&mut self, paging: &Paging, space: Space, address: u64) {
        self.pages.remove(page_key(space, address));
        self.pages.remove(page_key(space.global(), address));
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

impl Dimension<Known, Start> {
    /// The translation of `address` and its page, if nothing about it is unusual: `None` leaves it to
    /// [`translate`](Self::translate), and has forgotten nothing.
    #[inline(always)]
    pub(super) fn quick<M: PhysMemory>(
        &mut self,
        memory: &M,
        ask: &Ask<'_>,
        (space, global_pages): (Space, bool),
        address: u64,
    ) -> Option<(Leaf, Known)> {
        let paging = ask.paging;
        if let Some(known) = self.page(space, address) {
            return Some((known.quick(ask, address)?, *known));
        }
        let (leaf, table) = match self.lowest_table(paging, space, address) {
            Some(from) => (ask.descend_lowest(from, address, |entry| memory.read_entry(entry).ok())?, from),
            None => self.quick_from(memory, ask, space, address)?,
        };
        let known = Known::new(paging, &leaf, table.tables, ask.access);
        if ask.flags == Flags::Set {
            self.remember(paging, (space, global_pages), address, known);
        }
        Some((leaf, known))
    }

    /// The translation of `address` from the lowest table remembered, or else from the root; and the table it is in.
    #[inline(never)]
    fn quick_from<M: PhysMemory>(
        &mut self,
        memory: &M,
        ask: &Ask<'_>,
        space: Space,
        address: u64,
    ) -> Option<(Leaf, Start)> {
        let from = self.table(ask.paging, space, address);
        let (leaf, table) = ask.descend_from(from, address, |entry| memory.read_entry(entry).ok())?;
        if ask.flags == Flags::Set && from != Some(table) {
            self.remember_table(ask.paging, space, address, (table.level, table));
        }
        Some((leaf, table))
    }

    /// Remembers a page that a walk has found.
    #[inline]
    fn remember(
        &mut self,
        paging: &Paging,
        (space, global_pages): (Space, bool),
        address: u64,
        known: Known,
    ) {
        let global = global_pages && paging.format.is_global(known.entry());
        self.remember_page(space, address, known, global);
    }

    /// A walk through what is remembered. `path` is that of the entries read, if any were.
    #[expect(clippy::too_many_arguments, reason = "a walk's arguments, and the space they belong to")]
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
        if let Some(known) = self.page(space, address) {
            match known.judged(paging, address, access, flags) {
                Ok(Use::Done(leaf)) => return Ok(leaf),
                Ok(Use::Walk) => {}
                Err(fault) => {
                    self.forget_address(paging, space, address);
                    return Err(fault);
                }
            }
        }
        let from = self.table(paging, space, address);
        let outcome = walk_from(from, path, memory, paging, address, access, flags);
        match &outcome {
            // What a look finds is not remembered: its flags are not set.
            Ok(leaf) if flags == Flags::Set => {
                if let Some(table) = lowest_table(paging, from, path) {
                    let known = Known::new(paging, leaf, table.tables, access);
                    self.remember(paging, (space, global_pages), address, known);
                    self.remember_table(paging, space, address, (table.level, table));
                }
            }
            Ok(_) => {}
            Err(_) => self.forget_address(paging, space, address),
        }
        outcome
    }
}

/// The table of the last step of a walk that began at `from`, or at the root, and has set the flags on its way.
pub(super) fn lowest_table(paging: &Paging, from: Option<Start>, path: &Path) -> Option<Start> {
    let (last, above) = path.split_last()?;
    let top = from.map_or(u64::MAX, |start| start.tables);
    let format = &paging.format;
    let marked = |step: &Step| format.mergeable(format.marked(step.entry, false, false));
    let tables = above.iter().fold(top, |tables, step| tables & marked(step));
    Some(Start { level: last.level, table: last.table, tables })
}
