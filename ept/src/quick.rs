//! The walk that nearly all walks are: every entry present and well formed, the access allowed, flags already set.
//!
//! It has three tests a level and keeps no path. Whatever is unusual it leaves to the exact walker in `walk`, which
//! starts again from the root: so this one must be right only when it finds a page. Both use the same masks.

use memory_model::PageSize;

use crate::access::{Access, Controls, Rights};
use crate::format::Format;
use crate::judge::{Found, key_denies};
use crate::walk::{Flags, Leaf, Paging};

/// The page at `address`, or `None` if the exact walker must see to it. `read` gives an entry, if memory does.
#[inline(always)]
pub(crate) fn descend(
    paging: &Paging,
    address: u64,
    access: Access,
    flags: Flags,
    mut read: impl FnMut(u64) -> Option<u64>,
) -> Option<Leaf> {
    let format = &paging.format;
    if !format.translates(address) || access.does.contains(Rights::SHADOW_STACK) {
        return None;
    }
    let mut walk = Quick { paging, address, access, flags, table: paging.root, merged: u64::MAX };
    match format.levels() {
        5 => {
            walk.level::<5>(&mut read)?;
        }
        4 => {}
        _ => return None,
    }
    walk.level::<4>(&mut read)?;
    if let Some(leaf) = walk.level::<3>(&mut read)? {
        return Some(leaf);
    }
    if let Some(leaf) = walk.level::<2>(&mut read)? {
        return Some(leaf);
    }
    let entry = read(walk.entry_address(1))?;
    walk.merged &= format.mergeable(entry);
    walk.leaf(1, entry)
}

struct Quick<'a> {
    paging: &'a Paging,
    address: u64,
    access: Access,
    flags: Flags,
    /// The table to read next.
    table: u64,
    /// AND of the entries read, in the shape of [`Format::mergeable`].
    merged: u64,
}

impl Quick<'_> {
    #[inline(always)]
    fn entry_address(&self, level: u8) -> u64 {
        self.table + (self.address >> (12 + 9 * (level as u32 - 1)) & 0x1ff) * 8
    }

    /// Goes on to the next table, or comes to a leaf.
    #[inline(always)]
    fn level<const LEVEL: u8>(&mut self, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<Option<Leaf>> {
        let format = &self.paging.format;
        let entry = read(self.entry_address(LEVEL))?;
        self.merged &= format.mergeable(entry);
        if !format.is_plain_table(LEVEL, entry) {
            return self.leaf(LEVEL, entry).map(Some);
        }
        self.table = entry & Format::FRAME;
        Some(None)
    }

    /// The translation that ends here, if nothing about it is unusual.
    #[inline(always)]
    fn leaf(&self, level: u8, entry: u64) -> Option<Leaf> {
        let Self { paging, address, access, flags, .. } = *self;
        let format = &paging.format;
        let granted = format.granted(self.merged, entry);
        if !format.is_plain_leaf(level, entry)
            || !format.demand(access, paging.controls).is_met(granted)
            || flags == Flags::Set && !format.is_marked(self.merged, entry, access.writes())
            || paging.controls.intersects(Controls::PKE.union(Controls::PKS))
                && key_denies(paging, access, Found { tables: self.merged, granted, leaf: entry })
        {
            return None;
        }
        let size = PageSize::of_level(level)?;
        let frame = entry & Format::FRAME & !(size.bytes() - 1);
        Some(Leaf::new(format.kind(), address, (frame, size), entry, granted))
    }
}
