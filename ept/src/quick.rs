//! The walk that nearly all walks are: every entry present and well formed, the access allowed, flags already set.
//!
//! It has one test a level and keeps no path. Whatever is unusual it leaves to the exact walker in `walk`, which
//! starts again from the root: so this one must be right only when it finds a page. Both use the same masks.

use memory_model::PageSize;

use crate::access::{Access, Controls, Rights};
use crate::format::Format;
use crate::judge::{Demand, Found, key_denies};
use crate::paging::{Paging, Start};
use crate::walk::{Flags, Leaf};

/// What quick walks through the same tables have in common.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    paging: &'a Paging,
    access: Access,
    demand: Demand,
    /// Flags that the leaf must have.
    leaf_flags: u64,
    /// [`Format::withheld`] of an entry without a bit.
    withheld: u64,
}

impl<'a> Ask<'a> {
    /// `None` if there are no quick walks: they are through tables of 64-bit entries, from a root table of level 4 or
    /// 5 on.
    #[inline(always)]
    pub fn new(paging: &'a Paging, access: Access, flags: Flags) -> Option<Self> {
        let format = &paging.format;
        if format.levels() < 4 || access.does.contains(Rights::SHADOW_STACK) {
            return None;
        }
        let demand = format.demand(access, paging.controls);
        let (flags, leaf_flags) = match flags {
            Flags::Keep => (0, 0),
            Flags::Set => (format.flags(false, false), format.flags(true, access.writes())),
        };
        Some(Self { paging, access, demand: demand.and(flags), leaf_flags, withheld: !format.mergeable(0) })
    }

    /// The page at `address`, or `None` if the exact walker must see to it. `read` gives an entry, if memory does.
    #[inline(always)]
    pub fn descend(&self, address: u64, read: impl FnMut(u64) -> Option<u64>) -> Option<Leaf> {
        self.descend_from(None, address, read).map(|(leaf, _)| leaf)
    }

    /// The same from a table that may be further down; with the table that the leaf is in.
    #[inline(always)]
    pub fn descend_from(
        &self,
        from: Option<Start>,
        address: u64,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Option<(Leaf, Start)> {
        // A copy, which no read of memory can change, stays in registers.
        let ask = *self;
        if !ask.paging.format.translates(address) {
            return None;
        }
        let root = Start { level: ask.paging.format.levels(), table: ask.paging.root, tables: u64::MAX };
        let Start { level, table, tables } = from.unwrap_or(root);
        let mut walk = Quick { address, table, withheld: !tables };
        if level == 5 {
            walk.level::<5>(&ask, &mut read)?;
        }
        if level >= 4 {
            walk.level::<4>(&ask, &mut read)?;
        }
        if level >= 3
            && let Some(found) = walk.level::<3>(&ask, &mut read)?
        {
            return Some(found);
        }
        if level >= 2
            && let Some(found) = walk.level::<2>(&ask, &mut read)?
        {
            return Some(found);
        }
        walk.level::<1>(&ask, &mut read)?
    }
}

/// A walk under way.
#[derive(Clone, Copy, Default)]
pub(crate) struct Quick {
    address: u64,
    /// The table to read next.
    table: u64,
    /// Complement of the AND of the entries read, in the shape of [`Format::mergeable`]: so that one test shows
    /// whether any of them withholds what a table pointer must have.
    withheld: u64,
}

impl Quick {
    #[inline(always)]
    pub fn new(paging: &Paging, address: u64) -> Self {
        Self { address, table: paging.root, withheld: 0 }
    }

    /// Goes on to the next table (`Some(None)`), or comes to a leaf; `None` at anything unusual.
    #[inline(always)]
    fn level<const LEVEL: u8>(
        &mut self,
        ask: &Ask<'_>,
        read: &mut impl FnMut(u64) -> Option<u64>,
    ) -> Option<Option<(Leaf, Start)>> {
        let start = Start { level: LEVEL, table: self.table, tables: !self.withheld };
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
        self.withheld |= entry ^ ask.withheld;
        self.table = entry & Format::FRAME;
        LEVEL > 1 && format.are_plain_tables(LEVEL, self.withheld)
    }

    /// The translation that ends at that entry, if nothing about it is unusual.
    #[inline(always)]
    pub fn leaf<const LEVEL: u8>(&self, ask: &Ask<'_>, entry: u64) -> Option<Leaf> {
        let Ask { paging, access, demand, leaf_flags, .. } = *ask;
        let format = &paging.format;
        let merged = !self.withheld;
        let granted = format.granted(merged, entry);
        if !format.is_plain_leaf(LEVEL, entry, leaf_flags)
            || !demand.is_met(merged)
            || paging.controls.intersects(Controls::PKE.union(Controls::PKS))
                && key_denies(paging, access, Found { tables: merged, granted, leaf: entry })
        {
            return None;
        }
        let size = PageSize::of_level(LEVEL)?;
        let frame = entry & Format::FRAME & !(size.bytes() - 1);
        Some(Leaf::new(format.kind(), self.address, (frame, size), entry, granted))
    }
}
