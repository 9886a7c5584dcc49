//! Many walks at once, level by level.
//!
//! A walk is a chain of loads, each of which waits for the one before. Walks side by side wait for many cache misses
//! at a time.

use crate::access::Access;
use crate::fault::Fault;
use crate::paging::Paging;
use crate::phys::PhysMemory;
use crate::quick::{Ask, Quick};
use crate::walk::{Flags, Leaf, translate};

/// How many walks are under way at once: about as many as a core has misses in flight.
const LANES: usize = 32;

/// [`translate`](crate::translate) for each of `addresses`: `each` gets the outcomes in their order. Between reading
/// an entry of one walk and the next, entries of other walks are read; in all else the outcomes are the same.
///
/// ```
/// use ept::*;
/// use memory_model::PageSize;
/// let mut memory = SparseMemory::allocating_from(0x10_0000);
/// let root = memory.allocate_table().unwrap();
/// let paging = Paging::new(Format::ept(Ept::new(Levels::Four, EptCaps::all(), MaxPhyAddr::MAX)), root);
/// let page = Attributes::ram(Kind::Ept, Rights::READ);
/// Mapper::new(&mut memory, paging).map(0x20_0000, 0x40_0000, PageSize::Size2M, page)?;
///
/// let mut found = Vec::new();
/// translate_many(&memory, &paging, &[0x20_1234, 0], Access::READ, Flags::Keep, |outcome| found.push(outcome));
/// assert_eq!(found[0].unwrap().address, 0x40_1234);
/// assert!(found[1].is_err());
/// # Ok::<(), ept::Error>(())
/// ```
pub fn translate_many(
    memory: &impl PhysMemory,
    paging: &Paging,
    addresses: &[u64],
    access: Access,
    flags: Flags,
    mut each: impl FnMut(Result<Leaf, Fault>),
) {
    let Some(ask) = Ask::new(paging, access, flags).filter(|_| paging.format.levels() >= 4) else {
        return addresses.iter().for_each(|&address| each(translate(memory, paging, address, access, flags)));
    };
    let mut lanes = [Lane::default(); LANES];
    for addresses in addresses.chunks(LANES) {
        let lanes = &mut lanes[..addresses.len()];
        descend(memory, paging, &ask, addresses, lanes);
        for (lane, &address) in lanes.iter().zip(addresses) {
            each(match lane.leaf(&ask) {
                Some(leaf) => Ok(leaf),
                None => translate(memory, paging, address, access, flags),
            });
        }
    }
}

/// A quick walk among others.
#[derive(Clone, Copy, Default)]
struct Lane {
    walk: Quick,
    /// Level of the entry to read next; once the walk is over, of its last one. 0 if there is none.
    level: u8,
}

#[inline(always)]
fn descend(memory: &impl PhysMemory, paging: &Paging, ask: &Ask<'_>, addresses: &[u64], lanes: &mut [Lane]) {
    let levels = paging.format.levels();
    for (lane, &address) in lanes.iter_mut().zip(addresses) {
        let level = if paging.format.translates(address) { levels } else { 0 };
        *lane = Lane { walk: Quick::new(paging, address), level };
    }
    let mut read = |entry| memory.read_entry(entry).ok();
    if levels == 5 {
        read_level::<5>(ask, lanes, &mut read);
    }
    read_level::<4>(ask, lanes, &mut read);
    read_level::<3>(ask, lanes, &mut read);
    read_level::<2>(ask, lanes, &mut read);
    read_level::<1>(ask, lanes, &mut read);
}

/// Reads an entry for each walk that has come to that level.
#[inline(always)]
fn read_level<const LEVEL: u8>(ask: &Ask<'_>, lanes: &mut [Lane], read: &mut impl FnMut(u64) -> Option<u64>) {
    for lane in lanes.iter_mut().filter(|lane| lane.level == LEVEL) {
        let Some(entry) = read(lane.walk.entry_address::<LEVEL>()) else {
            lane.level = 0;
            continue;
        };
        lane.level -= u8::from(lane.walk.goes_on::<LEVEL>(ask, entry));
    }
}

impl Lane {
    /// Where the walk has come to, if nothing about it is unusual.
    #[inline(always)]
    fn leaf(&self, ask: &Ask<'_>) -> Option<Leaf> {
        match self.level {
            1 => self.walk.leaf::<1>(ask),
            2 => self.walk.leaf::<2>(ask),
            3 => self.walk.leaf::<3>(ask),
            _ => None,
        }
    }
}
