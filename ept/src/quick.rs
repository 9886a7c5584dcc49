//! The walk that nearly all walks are: every entry present and well formed, the access allowed, flags already set.
//!
//! It has one test a level and keeps no path. Whatever is unusual it leaves to the exact walker in `walk`, which
//! starts again from the root: so this one must be right only when it finds a page. Both use the same masks.

use memory_model::PageSize;

use crate::access::{Access, Controls, Rights};
use crate::format::Format;
use crate::judge::{Demand, Found, key_denies};
use crate::walk::{Flags, Leaf, Paging, Start};

/// The page at `address`, or `None` if the exact walker must see to it. `read` gives an entry, if memory does.
#[inline(always)]
pub(crate) fn descend(
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
    read: impl FnMut(u64) -> Option<u64>,
) -> Option<Leaf> {
    descend_from(None, paging, address, access, flags, read).map(|(leaf, _)| leaf)
}

/// The same from a table further down, whose entry must be a leaf; with the table that the leaf is in.
#[inline(always)]
pub(crate) fn descend_from(
    from: Option<Start>,
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
    mut read: impl FnMut(u64) -> Option<u64>,
) -> Option<(Leaf, Start)> {
    let ask = Ask::new(paging, access, flags);
    if !ask.is_quick(address) {
        return None;
    }
    let mut walk = Quick::new(paging, address);
    if let Some(Start { level, table, tables }) = from {
        walk = Quick { address, table, merged: tables };
        return match level {
            1 => walk.level::<1>(&ask, &mut read)?,
            2 => walk.level::<2>(&ask, &mut read)?,
            3 => walk.level::<3>(&ask, &mut read)?,
            _ => None,
        };
    }
    if paging.format.levels() == 5 {
        walk.level::<5>(&ask, &mut read)?;
    }
    walk.level::<4>(&ask, &mut read)?;
    if let Some(found) = walk.level::<3>(&ask, &mut read)? {
        return Some(found);
    }
    if let Some(found) = walk.level::<2>(&ask, &mut read)? {
        return Some(found);
    }
    walk.level::<1>(&ask, &mut read)?
}

/// What quick walks through the same tables have in common.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    paging: &'a Paging,
    access: Access,
    flags: Flags,
    demand: Demand,
}

impl<'a> Ask<'a> {
    #[inline(always)]
    pub fn new(paging: &'a Paging, access: Access, flags: Flags) -> Self {
        Self { paging, access, flags, demand: paging.format.demand(access, paging.controls) }
    }

    /// Whether there may be a quick walk at all: through tables of 64-bit entries, from a root table on.
    #[inline(always)]
    pub fn is_quick(&self, address: u64) -> bool {
        let format = &self.paging.format;
        format.levels() >= 4 && format.translates(address) && !self.access.does.contains(Rights::SHADOW_STACK)
    }
}

/// A walk under way.
#[derive(Clone, Copy, Default)]
pub(crate) struct Quick {
    address: u64,
    /// The table to read next.
    table: u64,
    /// AND of the entries read, in the shape of [`Format::mergeable`].
    merged: u64,
}

impl Quick {
    #[inline(always)]
    pub fn new(paging: &Paging, address: u64) -> Self {
        Self { address, table: paging.root, merged: u64::MAX }
    }

    /// Goes on to the next table (`Some(None)`), or comes to a leaf; `None` at anything unusual.
    #[inline(always)]
    fn level<const LEVEL: u8>(
        &mut self,
        ask: &Ask<'_>,
        read: &mut impl FnMut(u64) -> Option<u64>,
    ) -> Option<Option<(Leaf, Start)>> {
        let start = Start { level: LEVEL, table: self.table, tables: self.merged };
        let entry = read(self.entry_address::<LEVEL>())?;
        if self.goes_on::<LEVEL>(ask, entry) {
            return Some(None);
        }
        self.leaf::<LEVEL>(ask, entry).map(|leaf| Some((leaf, start)))
    }

    /// Where the entry of that level is.
    #[inline(always)]
    pub fn entry_address<const LEVEL: u8>(&self) -> u64 {
        self.table + (self.address >> (12 + 9 * (LEVEL as u32 - 1)) & 0x1ff) * 8
    }

    /// Takes the entry in; whether it leads to another table, which then is the next.
    #[inline(always)]
    pub fn goes_on<const LEVEL: u8>(&mut self, ask: &Ask<'_>, entry: u64) -> bool {
        let format = &ask.paging.format;
        let mergeable = format.mergeable(entry);
        self.merged &= mergeable;
        self.table = entry & Format::FRAME;
        LEVEL > 1 && format.is_plain_table(LEVEL, mergeable)
    }

    /// The translation that ends at that entry, if nothing about it is unusual.
    #[inline(always)]
    pub fn leaf<const LEVEL: u8>(&self, ask: &Ask<'_>, entry: u64) -> Option<Leaf> {
        let Ask { paging, access, flags, demand } = *ask;
        let format = &paging.format;
        let granted = format.granted(self.merged, entry);
        if !format.is_plain_leaf(LEVEL, entry)
            || !demand.is_met(self.merged)
            || flags == Flags::Set && !format.is_marked(self.merged, entry, access.writes())
            || paging.controls.intersects(Controls::PKE.union(Controls::PKS))
                && key_denies(paging, access, Found { tables: self.merged, granted, leaf: entry })
        {
            return None;
        }
        let size = PageSize::of_level(LEVEL)?;
        let frame = entry & Format::FRAME & !(size.bytes() - 1);
        Some(Leaf::new(format.kind(), self.address, (frame, size), entry, granted))
    }
}
