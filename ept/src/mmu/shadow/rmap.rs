//! From a guest page to the leaves that map it (rule H5).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use memory_model::{AddrRange, Gpa, PageSize};

use super::page::{PteList, SpteRef};

/// Per size of the leaf, and per 512 pages of that size.
#[derive(Debug, Default)]
pub(super) struct Rmap {
    levels: [BTreeMap<u64, Box<Stretch>>; 3],
}

/// 512 neighbouring pages.
#[derive(Debug)]
struct Stretch {
    lists: [PteList; 512],
    /// How many of the lists are not empty.
    used: u16,
}

/// The stretch and the place in it.
fn place(level: u8, gfn: u64) -> (u64, usize) {
    let page = gfn >> (9 * (level - 1));
    (page >> 9, (page & 511) as usize)
}

impl Rmap {
    pub fn add(&mut self, level: u8, gfn: u64, at: SpteRef) {
        let (stretch, place) = place(level, gfn);
        let stretch = self.levels[usize::from(level - 1)]
            .entry(stretch)
            .or_insert_with(|| Box::new(Stretch { lists: [const { PteList::Empty }; 512], used: 0 }));
        stretch.used += u16::from(stretch.lists[place].is_empty());
        stretch.lists[place].push(at);
    }

    pub fn remove(&mut self, level: u8, gfn: u64, at: SpteRef) {
        let (number, place) = place(level, gfn);
        let level = &mut self.levels[usize::from(level - 1)];
        let Some(stretch) = level.get_mut(&number) else { return };
        stretch.lists[place].remove(at);
        stretch.used -= u16::from(stretch.lists[place].is_empty());
        if stretch.used == 0 {
            level.remove(&number);
        }
    }

    /// The leaves of that level that map the page.
    pub fn leaves(&self, level: u8, gfn: u64) -> &[SpteRef] {
        let (stretch, place) = place(level, gfn);
        match self.levels[usize::from(level - 1)].get(&stretch) {
            Some(stretch) => stretch.lists[place].as_slice(),
            None => &[],
        }
    }

    /// All leaves of any level that share an address with `range`.
    pub fn leaves_in(&self, range: AddrRange<Gpa>) -> Vec<SpteRef> {
        let mut found = Vec::new();
        for size in PageSize::ALL {
            let shift = size.shift();
            let (first, last) = (range.first().raw() >> shift, range.last().raw() >> shift);
            for (&number, stretch) in self.levels[usize::from(size.level() - 1)].range(first >> 9..=last >> 9)
            {
                let base = number << 9;
                let from = first.saturating_sub(base) as usize;
                let to = (last - base).min(511) as usize;
                found.extend(stretch.lists[from..=to].iter().flat_map(PteList::as_slice));
            }
        }
        found
    }
}
