//! The walk that nearly all walks are: every entry present and well formed, the access allowed, flags already set.
//!
//! It has one test a level and keeps no path. Whatever is unusual it leaves to the exact walker in `walk`, which
//! starts again from the root: so this one must be right only when it finds a page. Both use the same masks.

use memory_model::PageSize;

use crate::access::{Access, Rights};
use crate::format::Format;
use crate::judge::controls_deny;
use crate::paging::{Paging, Start};
use crate::walk::{Flags, Leaf};

/// What quick walks through the same tables have in common.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub paging: &'a Paging,
    pub access: Access,
    pub flags: Flags,
    /// What no entry may [withhold](Format::withheld).
    all: u64,
    /// What the leaf may not withhold either.
    leaf: u64,
}

impl<'a> Ask<'a> {
    /// `None` if there are no quick walks: they are through tables of 64-bit entries, from a root table of level 4 or
    /// 5 on.
    #[inline(always)]
    pub fn new(paging: &'a Paging, access: Access, flags: Flags) -> Option<Self> {
        let format = &paging.format;
        if access.does.contains(Rights::SHADOW_STACK) {
            return None;
        }
        let (marks, leaf) = match flags {
            Flags::Keep => (0, 0),
            Flags::Set => (format.flags(false, false), format.flags(true, access.writes())),
        };
        Some(Self { paging, access, flags, all: format.asked(access) | marks, leaf })
    }

    /// Whether a page that was found before, and remembered, lets the access through.
    #[inline(always)]
    pub fn allows(&self, leaf: &Leaf) -> bool {
        self.paging.format.withheld(leaf.entry) & self.leaf == 0 && self.grants(leaf.entry, leaf.withheld())
    }

    /// Whether a walk to that leaf grants what is asked, but for the leaf's flags.
    #[inline(always)]
    fn grants(&self, leaf: u64, withheld: u64) -> bool {
        withheld & self.all == 0 && !controls_deny(self.paging, self.access, leaf, withheld)
    }

    /// The page at `address`, or `None` if the exact walker must see to it. `read` gives an entry, if memory does.
    #[inline(always)]
    pub fn descend(&self, address: u64, mut read: impl FnMut(u64) -> Option<u64>) -> Option<Leaf> {
        let mut walk = Quick::new(self.paging, address);
        if self.paging.format.levels() != 4 {
            walk = walk.top(self, &mut read)?;
        }
        self.descend_four(walk, read)
    }

    /// The same of a walk that has come to a table of level 4.
    #[inline(always)]
    pub fn descend_four(&self, mut walk: Quick, mut read: impl FnMut(u64) -> Option<u64>) -> Option<Leaf> {
        match self.tables(&mut walk, &mut read)? {
            1 => {
                walk.level::<1>(self, &mut read)?;
                walk.leaf::<1>(self)
            }
            2 => walk.leaf::<2>(self),
            _ => walk.leaf::<3>(self),
        }
    }

    /// The same, where the last walk may have read all but the lowest entry.
    #[inline(always)]
    pub fn descend_near(
        &self,
        near: &mut Near,
        address: u64,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Option<Leaf> {
        let mut walk = Quick { address, ..near.0 };
        if (address ^ near.0.address) >> 21 != 0 {
            walk = Quick::new(self.paging, address);
            if self.paging.format.levels() != 4 {
                walk = walk.top(self, &mut read)?;
            }
            match self.tables(&mut walk, &mut read)? {
                1 => near.0 = walk,
                2 => return walk.leaf::<2>(self),
                _ => return walk.leaf::<3>(self),
            }
        }
        walk.level::<1>(self, &mut read)?;
        walk.leaf::<1>(self)
    }

    /// Reads all entries from level 4 to level 2, up to a leaf if there is one; the level that comes next, or that of the leaf.
    #[inline(always)]
    fn tables(&self, walk: &mut Quick, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<u8> {
        if !self.paging.format.translates(walk.address) {
            return None;
        }
        if !walk.level::<4>(self, read)? {
            return None;
        }
        if !walk.level::<3>(self, read)? {
            return Some(3);
        }
        Some(if walk.level::<2>(self, read)? { 1 } else { 2 })
    }

    /// The same from a remembered table of level 1 on.
    #[inline(always)]
    pub fn descend_lowest(
        &self,
        from: Start,
        address: u64,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Option<Leaf> {
        if !self.is_quick(address) {
            return None;
        }
        let mut walk = Quick { address, entry: from.table, withheld: !from.tables };
        walk.level::<1>(self, &mut read)?;
        walk.leaf::<1>(self)
    }

    #[inline(always)]
    fn is_quick(&self, address: u64) -> bool {
        self.paging.format.levels() >= 4 && self.paging.format.translates(address)
    }

    /// The same from any remembered table on, or else from the root; with the table that the leaf is in.
    #[inline(always)]
    pub fn descend_from(
        &self,
        from: Option<Start>,
        address: u64,
        mut read: impl FnMut(u64) -> Option<u64>,
    ) -> Option<(Leaf, Start)> {
        let format = &self.paging.format;
        if !self.is_quick(address) {
            return None;
        }
        let root = Start { level: format.levels(), table: self.paging.root, tables: u64::MAX };
        let Start { level, table, tables } = from.unwrap_or(root);
        let mut walk = Quick { address, entry: table, withheld: !tables };
        if level > 1 {
            if level == 5 && !walk.level::<5>(self, &mut read)? {
                return None;
            }
            if level >= 4 && !walk.level::<4>(self, &mut read)? {
                return None;
            }
            if level >= 3 {
                let start = walk.start(3);
                if !walk.level::<3>(self, &mut read)? {
                    return Some((walk.leaf::<3>(self)?, start));
                }
            }
            let start = walk.start(2);
            if !walk.level::<2>(self, &mut read)? {
                return Some((walk.leaf::<2>(self)?, start));
            }
        }
        let start = walk.start(1);
        walk.level::<1>(self, &mut read)?;
        Some((walk.leaf::<1>(self)?, start))
    }
}

/// A walk that has come to its lowest table, for another one to the same 2 MiB. At first it is one that has come to none,
/// for an address that there is not.
pub(crate) struct Near(Quick);

impl Default for Near {
    fn default() -> Self {
        Self(Quick { address: u64::MAX, entry: 0, withheld: u64::MAX })
    }
}

/// A walk under way.
#[derive(Clone, Copy, Default)]
pub(crate) struct Quick {
    address: u64,
    /// The entry read last; at first the root table.
    entry: u64,
    /// OR of what all entries read [withhold](Format::withheld): so one test shows whether any of them withholds what a
    /// table pointer must have.
    withheld: u64,
}

impl Quick {
    #[inline(always)]
    pub fn new(paging: &Paging, address: u64) -> Self {
        Self { address, entry: paging.root, withheld: 0 }
    }

    #[inline(always)]
    fn start(&self, level: u8) -> Start {
        Start { level, table: self.entry & Format::FRAME, tables: !self.withheld }
    }

    /// Reads the entry of that level; whether it leads to another table.
    #[inline(always)]
    fn level<const LEVEL: u8>(
        &mut self,
        ask: &Ask<'_>,
        read: &mut impl FnMut(u64) -> Option<u64>,
    ) -> Option<bool> {
        let entry = read(self.entry_address::<LEVEL>())?;
        Some(self.goes_on::<LEVEL>(ask, entry))
    }

    /// Reads the entry above four levels, if there is such a one.
    #[cold]
    fn top(mut self, ask: &Ask<'_>, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<Self> {
        let is_table = ask.paging.format.levels() == 5 && self.level::<5>(ask, read)?;
        is_table.then_some(self)
    }

    /// Where the entry of that level is.
    #[inline(always)]
    pub fn entry_address<const LEVEL: u8>(&self) -> u64 {
        entry_address::<LEVEL>(self.entry, self.address)
    }

    /// Takes in an entry; whether it leads to another table.
    #[inline(always)]
    pub fn goes_on<const LEVEL: u8>(&mut self, ask: &Ask<'_>, entry: u64) -> bool {
        let format = &ask.paging.format;
        self.entry = entry;
        self.withheld |= format.withheld(entry);
        LEVEL > 1 && format.are_plain_tables(LEVEL, self.withheld)
    }

    /// The translation that ends at the entry read last, if nothing about it is unusual.
    #[inline(always)]
    pub fn leaf<const LEVEL: u8>(&self, ask: &Ask<'_>) -> Option<Leaf> {
        let format = &ask.paging.format;
        let withheld = format.withheld(self.entry);
        if withheld & ask.leaf != 0
            || !ask.grants(self.entry, self.withheld)
            || !format.admits_leaf(LEVEL, withheld)
        {
            return None;
        }
        let size = PageSize::of_level(LEVEL)?;
        let frame = self.entry & Format::FRAME & !(size.bytes() - 1);
        Some(Leaf::new(format.offer(), self.address, (frame, size), self.entry, self.withheld))
    }
}

/// Where the entry of that level for `address` is, in the table that `above` leads to.
#[inline(always)]
pub(crate) fn entry_address<const LEVEL: u8>(above: u64, address: u64) -> u64 {
    (above & Format::FRAME) + (address >> (12 + 9 * (LEVEL as u32 - 1)) & 0x1ff) * 8
}
