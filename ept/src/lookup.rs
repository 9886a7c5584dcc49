//! Where an address leads, whoever asks.

use memory_model::PageSize;

use crate::access::Access;
use crate::format::{Entry, Format};
use crate::paging::{Paging, Start};
use crate::phys::PhysMemory;
use crate::quick::entry_address;
use crate::walk::{Plain, read};

/// The page that an address lies in.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Mapped {
    /// The output address.
    pub address: u64,
    /// The leaf, raw.
    pub entry: u64,
    /// Size of the page.
    pub size: PageSize,
}

/// The page at `address`, if there is one: what [`mappings`](crate::mappings) would give for it. No access is judged and no
/// rights are gathered on the way, which [`walk`](crate::walk()) does for whoever wants them, with memory type and path; so
/// this is the shortest walk there is.
#[inline(always)]
pub fn lookup(memory: &impl PhysMemory, paging: &Paging, address: u64) -> Option<Mapped> {
    small_page(memory, paging, address).or_else(|| any_page(memory, paging, address))
}

/// A page of 4 KiB behind four levels of the plainest table pointers.
#[inline(always)]
fn small_page(memory: &impl PhysMemory, paging: &Paging, address: u64) -> Option<Mapped> {
    let format = &paging.format;
    if format.levels() != 4 || !format.translates(address) {
        return None;
    }
    let pml4e = table::<4>(memory, format, paging.root, address)?;
    let pdpte = table::<3>(memory, format, pml4e, address)?;
    let pde = table::<2>(memory, format, pdpte, address)?;
    let entry = memory.read_entry(entry_address::<1>(pde, address)).ok()?;
    let withheld = format.withheld(entry);
    if withheld & format.asked(Access::READ) != 0 || !format.admits_leaf(1, withheld) {
        return None;
    }
    Some(Mapped { address: entry & Format::FRAME | address & 0xfff, entry, size: PageSize::Size4K })
}

/// The entry of that level, if it is a table pointer for certain. `above` is the one that led to its table.
#[inline(always)]
fn table<const LEVEL: u8>(
    memory: &impl PhysMemory,
    format: &Format,
    above: u64,
    address: u64,
) -> Option<u64> {
    let entry = memory.read_entry(entry_address::<LEVEL>(above, address)).ok()?;
    format.are_plain_tables(LEVEL, format.withheld(entry)).then_some(entry)
}

/// Any page, level by level.
#[inline(never)]
fn any_page(memory: &impl PhysMemory, paging: &Paging, address: u64) -> Option<Mapped> {
    let format = &paging.format;
    if !format.translates(address) {
        return None;
    }
    let Start { mut level, mut table, .. } = paging.start(address)?;
    loop {
        let entry = read(&mut Plain(memory), format.step(level, table, address)).ok()?;
        match format.decode(level, entry) {
            Entry::Table(next) => (level, table) = (level - 1, next),
            Entry::Leaf(frame, size) => {
                return Some(Mapped { address: frame | address & (size.bytes() - 1), entry, size });
            }
            Entry::Absent | Entry::Malformed(_) => return None,
        }
    }
}
