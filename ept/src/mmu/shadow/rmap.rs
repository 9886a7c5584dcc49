//! From a guest page to the leaves that map it (rule H5).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use memory_model::{AddrRange, Gpa, PageSize};

use super::page::{PageId, SpteRef};

/// Per size of the leaf, and per 512 * 512 pages of that size.
#[derive(Debug, Default)]
pub(super) struct Rmap {
    levels: [BTreeMap<u64, Box<Region>>; 3],
    lists: Lists,
}

/// 512 stretches in a row. It stays when they are gone.
type Region = [Option<Stretch>; 512];

/// 512 neighbouring pages.
#[derive(Debug)]
struct Stretch {
    /// How many of them are mapped.
    used: u16,
    heads: Box<[RmapHead; 512]>,
}

/// The leaves that map a page: most often one (`kvm_rmap_head`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Leaves {
    None,
    One(SpteRef),
    /// The number of the list that has them.
    Many(usize),
}

/// [`Leaves`] in four bytes: `0 (31) | page (30:10) | index (9:1) | 1`, or `1 (31) | list (30:0)`, or zero. There is one
/// for each page that is mapped, so that its size tells in cache misses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct RmapHead(u32);

impl RmapHead {
    const EMPTY: Self = Self(0);
    const LIST: u32 = 1 << 31;

    /// Of one leaf; `None` if the number of its page is too large.
    #[inline]
    fn one(SpteRef { page: PageId(page), index }: SpteRef) -> Option<Self> {
        (page < 1 << 21).then_some(Self(page << 10 | u32::from(index) << 1 | 1))
    }

    #[inline]
    fn leaves(self) -> Leaves {
        match self.0 {
            0 => Leaves::None,
            list if list & Self::LIST != 0 => Leaves::Many((list & !Self::LIST) as usize),
            one => Leaves::One(SpteRef { page: PageId(one >> 10), index: (one >> 1 & 511) as u16 }),
        }
    }
}

/// The lists of pages that have more than one leaf, or had.
#[derive(Debug, Default)]
struct Lists {
    lists: Vec<Vec<SpteRef>>,
    free: Vec<usize>,
}

impl Lists {
    #[inline]
    fn push(&mut self, head: &mut RmapHead, at: SpteRef) {
        *head = match head.leaves() {
            Leaves::None => RmapHead::one(at).unwrap_or_else(|| self.list([at].into())),
            Leaves::One(first) => self.list([first, at].into()),
            Leaves::Many(list) => return self.lists[list].push(at),
        };
    }

    fn remove(&mut self, head: &mut RmapHead, at: SpteRef) {
        match head.leaves() {
            Leaves::One(only) if only == at => *head = RmapHead::EMPTY,
            Leaves::None | Leaves::One(_) => {}
            Leaves::Many(number) => {
                let list = &mut self.lists[number];
                list.retain(|&other| other != at);
                if list.is_empty() {
                    self.free.push(number);
                    *head = RmapHead::EMPTY;
                }
            }
        }
    }

    #[cold]
    fn list(&mut self, leaves: Vec<SpteRef>) -> RmapHead {
        let number = match self.free.pop() {
            Some(free) => {
                self.lists[free] = leaves;
                free
            }
            None => {
                self.lists.push(leaves);
                self.lists.len() - 1
            }
        };
        RmapHead(number as u32 | RmapHead::LIST)
    }

    fn iter(&self, head: RmapHead) -> impl Iterator<Item = SpteRef> + '_ {
        let (one, many): (_, &[_]) = match head.leaves() {
            Leaves::None => (None, &[]),
            Leaves::One(at) => (Some(at), &[]),
            Leaves::Many(list) => (None, &self.lists[list]),
        };
        one.into_iter().chain(many.iter().copied())
    }
}

/// Where a page has its list.
#[derive(Clone, Copy)]
struct Place {
    region: u64,
    stretch: usize,
    head: usize,
}

impl Place {
    /// Of the page of that number; pages are of the leaf's size.
    #[inline]
    fn of(page: u64) -> Self {
        Self { region: page >> 18, stretch: (page >> 9 & 511) as usize, head: (page & 511) as usize }
    }
}

/// The number of the page of a leaf of that level.
#[inline]
fn page(level: u8, gfn: u64) -> u64 {
    gfn >> (9 * (level - 1))
}

impl Rmap {
    pub fn add(&mut self, level: u8, gfn: u64, at: SpteRef) {
        let place = Place::of(page(level, gfn));
        let regions = &mut self.levels[usize::from(level - 1)];
        let region = regions.entry(place.region).or_insert_with(|| Box::new([const { None }; 512]));
        let stretch = region[place.stretch]
            .get_or_insert_with(|| Stretch { used: 0, heads: Box::new([RmapHead::EMPTY; 512]) });
        let head = &mut stretch.heads[place.head];
        stretch.used += u16::from(*head == RmapHead::EMPTY);
        self.lists.push(head, at);
    }

    pub fn remove(&mut self, level: u8, gfn: u64, at: SpteRef) {
        let place = Place::of(page(level, gfn));
        let Some(region) = self.levels[usize::from(level - 1)].get_mut(&place.region) else { return };
        let Some(stretch) = &mut region[place.stretch] else { return };
        let head = &mut stretch.heads[place.head];
        self.lists.remove(head, at);
        stretch.used -= u16::from(*head == RmapHead::EMPTY);
        if stretch.used == 0 {
            region[place.stretch] = None;
        }
    }

    /// The leaves of that level that map the page.
    pub fn leaves(&self, level: u8, gfn: u64) -> Vec<SpteRef> {
        let place = Place::of(page(level, gfn));
        let region = self.levels[usize::from(level - 1)].get(&place.region);
        let stretch = region.and_then(|region| region[place.stretch].as_ref());
        stretch.map_or(Vec::new(), |stretch| self.lists.iter(stretch.heads[place.head]).collect())
    }

    /// All leaves of any level that share an address with `range`.
    pub fn leaves_in(&self, range: AddrRange<Gpa>) -> Vec<SpteRef> {
        let mut found = Vec::new();
        for (regions, size) in self.levels.iter().zip(PageSize::ALL) {
            let [first, last] = [range.first(), range.last()].map(|gpa| gpa.raw() >> size.shift());
            for (&number, region) in regions.range(first >> 18..=last >> 18) {
                for (stretch, base) in region.iter().zip((number << 18..).step_by(512)) {
                    let Some(stretch) = stretch.as_ref().filter(|_| base <= last && first < base + 512)
                    else {
                        continue;
                    };
                    let heads =
                        &stretch.heads[first.saturating_sub(base) as usize..=(last - base).min(511) as usize];
                    found.extend(heads.iter().flat_map(|&head| self.lists.iter(head)));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    /// A list takes over where a head has no room: for a second leaf, and for a shadow page of a large number.
    #[test]
    fn every_leaf_is_found_until_it_goes() {
        let at = |page, index| SpteRef { page: PageId(page), index };
        for leaves in
            [vec![at(0, 0)], vec![at(1 << 21, 511)], vec![at((1 << 21) - 1, 511), at(1 << 21, 0), at(7, 3)]]
        {
            let mut rmap = Rmap::default();
            for _ in 0..2 {
                leaves.iter().for_each(|&leaf| rmap.add(1, 0x7_ffff, leaf));
                assert_eq!(rmap.leaves(1, 0x7_ffff), leaves);
                assert_eq!(rmap.leaves(1, 0x7_fffe), []);
                for left in 1..=leaves.len() {
                    rmap.remove(1, 0x7_ffff, leaves[left - 1]);
                    assert_eq!(rmap.leaves(1, 0x7_ffff), leaves[left..]);
                }
            }
        }
    }

    #[test]
    fn a_range_finds_the_leaves_of_all_sizes_that_touch_it() {
        let mut rmap = Rmap::default();
        let at = |page| SpteRef { page: PageId(page), index: 0 };
        // 1 GiB at 1 GiB, 2 MiB at its beginning, and 4 KiB pages at both ends of the range and beside them.
        let last = 0x8_01ff;
        let gfns = [(3, 0x4_0000), (2, 0x4_0000), (1, 0x4_01ff), (1, 0x4_0200), (1, last), (1, last + 1)];
        (0..).zip(gfns).for_each(|(page, (level, gfn))| rmap.add(level, gfn, at(page)));
        let range = AddrRange::inclusive(Gpa(0x4_0200 << 12), Gpa(last << 12)).unwrap();
        assert_eq!(rmap.leaves_in(range), [at(3), at(4), at(0)]);
    }
}
