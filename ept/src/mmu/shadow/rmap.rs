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
    Many(u32),
}

/// [`Leaves`] in eight bytes: `page or list (63:32) | index (31:16) | kind (1:0)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct RmapHead(u64);

impl RmapHead {
    const EMPTY: Self = Self(0);
    const ONE: u64 = 1;
    const MANY: u64 = 2;

    #[inline]
    fn pack(leaves: Leaves) -> Self {
        Self(match leaves {
            Leaves::None => 0,
            Leaves::One(SpteRef { page: PageId(page), index }) => {
                u64::from(page) << 32 | u64::from(index) << 16 | Self::ONE
            }
            Leaves::Many(list) => u64::from(list) << 32 | Self::MANY,
        })
    }

    #[inline]
    fn unpack(self) -> Leaves {
        let number = (self.0 >> 32) as u32;
        match self.0 & 3 {
            Self::ONE => Leaves::One(SpteRef { page: PageId(number), index: (self.0 >> 16) as u16 }),
            Self::MANY => Leaves::Many(number),
            _ => Leaves::None,
        }
    }
}

/// The lists of pages that have more than one leaf, or had.
#[derive(Debug, Default)]
struct Lists {
    lists: Vec<Vec<SpteRef>>,
    free: Vec<u32>,
}

impl Lists {
    fn push(&mut self, head: &mut RmapHead, at: SpteRef) {
        let leaves = match head.unpack() {
            Leaves::None => Leaves::One(at),
            Leaves::One(first) => Leaves::Many(self.make(first, at)),
            Leaves::Many(list) => return self.lists[list as usize].push(at),
        };
        *head = RmapHead::pack(leaves);
    }

    fn remove(&mut self, head: &mut RmapHead, at: SpteRef) {
        match head.unpack() {
            Leaves::One(only) if only == at => *head = RmapHead::EMPTY,
            Leaves::None | Leaves::One(_) => {}
            Leaves::Many(number) => {
                let list = &mut self.lists[number as usize];
                list.retain(|&other| other != at);
                if list.is_empty() {
                    self.free.push(number);
                    *head = RmapHead::EMPTY;
                }
            }
        }
    }

    #[cold]
    fn make(&mut self, first: SpteRef, second: SpteRef) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.lists.push(Vec::new());
            self.lists.len() as u32 - 1
        });
        self.lists[number as usize].extend([first, second]);
        number
    }

    fn iter(&self, head: RmapHead) -> impl Iterator<Item = SpteRef> + '_ {
        let (one, many): (_, &[_]) = match head.unpack() {
            Leaves::None => (None, &[]),
            Leaves::One(at) => (Some(at), &[]),
            Leaves::Many(list) => (None, &self.lists[list as usize]),
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
                    let Some(stretch) = stretch.as_ref().filter(|_| base <= last && first < base + 512) else {
                        continue;
                    };
                    let heads = &stretch.heads[first.saturating_sub(base) as usize..=(last - base).min(511) as usize];
                    found.extend(heads.iter().flat_map(|&head| self.lists.iter(head)));
                }
            }
        }
        found
    }
}
