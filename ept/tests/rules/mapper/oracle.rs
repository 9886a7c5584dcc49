//! Random operations against a plain map of pages.

use std::collections::{BTreeMap, BTreeSet};

use ept::{Access, Error, Flags, Flush, Mapping, Rights, Sizes, translate};
use memory_model::{AddrRange, Gva, PageSize};
use proptest::prelude::*;

use super::world::{FORMATS, G1, K4, M2, WIDTH, World};

#[derive(Clone, Copy, Debug)]
enum Op {
    Map {
        first: u64,
        frame: u64,
        size: PageSize,
        rights: Rights,
    },
    MapRange {
        first: u64,
        bytes: u64,
        frame: u64,
        sizes: Sizes,
        rights: Rights,
    },
    Unmap {
        first: u64,
    },
    UnmapRange {
        first: u64,
        bytes: u64,
    },
    Protect {
        first: u64,
        rights: Rights,
    },
    ProtectRange {
        first: u64,
        bytes: u64,
        rights: Rights,
    },
    Split {
        address: u64,
    },
    Join {
        first: u64,
        size: PageSize,
    },
    ClearAccessed {
        first: u64,
        bytes: u64,
    },
    ClearDirty {
        first: u64,
        bytes: u64,
    },
    /// The processor reads or writes.
    Touch {
        address: u64,
        write: bool,
    },
}

/// Lengths around the page sizes.
fn bytes() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (1..6u64).prop_map(|pages| pages * K4),
        3 => (1..4u64, 0..3u64).prop_map(|(large, pages)| large * M2 + pages * K4 - K4),
        2 => (1..3u64).prop_map(|large| large * M2),
        1 => (1..3u64, 0..3u64).prop_map(|(huge, large)| huge * G1 + large * M2 - M2),
        1 => Just(G1),
    ]
}

/// Few addresses, close together, so that operations meet: on both sides of the bounds of large pages.
fn address() -> impl Strategy<Value = u64> {
    let large = prop_oneof![4 => 0..3u64, 1 => 510..512u64];
    (0..3u64, large, prop_oneof![3 => Just(0), 1 => 0..4u64, 1 => 509..512u64], 0..40u64).prop_map(
        |(huge, large, page, odd)| huge * G1 + large * M2 + page * K4 + if odd == 0 { 0x800 } else { 0 },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let frame = (0..4u64, 0..12u64, 0..6u64);
    let rights = prop_oneof![
        1 => Just(Rights::READ),
        1 => Just(Rights::READ | Rights::WRITE),
        1 => Just(Rights::READ | Rights::EXEC),
        6 => Just(Rights::RWX),
        1 => Just(Rights::WRITE),
    ];
    let size = prop::sample::select(PageSize::ALL.to_vec());
    (0..24, address(), bytes(), frame, size, any::<bool>(), rights).prop_map(
        |(kind, first, bytes, (huge, large, odd), size, flag, rights)| {
            // Mostly congruent to the address, by huge and large pages or by large pages alone.
            let frame = (first & !0xfff)
                + (8 + huge) * G1
                + if large < 2 { large * M2 } else { 0 }
                + if odd == 0 { K4 } else { 0 };
            let aligned = first & !(size.bytes() - 1);
            match kind {
                0..4 => Op::Map { first: if odd < 4 { aligned } else { first }, frame, size, rights },
                4..7 => {
                    let exact = Sizes::Only(size);
                    let sizes = if flag { Sizes::UpTo(size) } else { exact };
                    // No gigabytes of small pages: the plain map would be slow.
                    let few = size != PageSize::Size4K && frame % M2 == first % M2;
                    Op::MapRange {
                        first,
                        bytes: if few { bytes } else { bytes % (4 * M2) + K4 },
                        frame,
                        sizes,
                        rights,
                    }
                }
                7 => Op::Unmap { first: if flag { aligned } else { first } },
                8..11 => Op::UnmapRange { first, bytes },
                11 => Op::Protect { first: if flag { aligned } else { first }, rights },
                12..14 => Op::ProtectRange { first, bytes, rights },
                14..16 => Op::Split { address: first | 0x123 },
                16..19 => Op::Join { first: if odd < 5 { aligned } else { first }, size },
                19 => Op::ClearAccessed { first, bytes },
                20 => Op::ClearDirty { first, bytes },
                _ => Op::Touch { address: first, write: flag },
            }
        },
    )
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Page {
    bytes: u64,
    frame: u64,
    rights: Rights,
    accessed: bool,
    dirty: bool,
}

/// Pages by their first address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Pages(BTreeMap<u64, Page>);

/// What an operation comes to: whether it is refused, which pages become stale, which pages it tells.
#[derive(Default)]
struct Expected {
    stale: Vec<(u64, u64)>,
    told: Vec<(u64, Page)>,
}

impl Pages {
    fn containing(&self, address: u64) -> Option<(u64, Page)> {
        let (&first, &page) = self.0.range(..=address).next_back()?;
        (address - first < page.bytes).then_some((first, page))
    }

    /// The pages that share an address with the range.
    fn overlapping(&self, first: u64, last: u64) -> Vec<(u64, Page)> {
        let below = self.containing(first).into_iter().filter(|&(start, _)| start < first);
        below.chain(self.0.range(first..=last).map(|(&first, &page)| (first, page))).collect()
    }

    /// Makes 512 of the page that starts at `first`.
    fn shatter(&mut self, first: u64) {
        let page = self.0.remove(&first).unwrap();
        let bytes = page.bytes / 512;
        for n in 0..512 {
            self.0.insert(first + n * bytes, Page { bytes, frame: page.frame + n * bytes, ..page });
        }
    }

    /// Splits pages until none crosses `at`.
    fn cut(&mut self, at: u64, stale: &mut Vec<(u64, u64)>) {
        while let Some((first, page)) = self.containing(at).filter(|&(first, _)| first < at) {
            stale.push((first, first + page.bytes - 1));
            self.shatter(first);
        }
    }

    /// `None` if it is refused.
    fn apply(&mut self, op: Op) -> Option<Expected> {
        let mut done = Expected::default();
        let whole = |first: u64, bytes: u64| first.is_multiple_of(K4) && bytes.is_multiple_of(K4);
        let sensible = |rights: Rights| rights != Rights::WRITE;
        match op {
            Op::Map { first, frame, size, rights } => {
                let sizes = Sizes::Only(size);
                return self.apply(Op::MapRange { first, bytes: size.bytes(), frame, sizes, rights });
            }
            Op::MapRange { first, bytes, frame, sizes, rights } => {
                let fits = frame + bytes <= 1 << WIDTH.bits();
                let free = self.overlapping(first, first + (bytes - 1)).is_empty();
                if !(fits && free && sensible(rights)) {
                    return None;
                }
                let mut at = first;
                while at < first + bytes {
                    let page = |size: PageSize| {
                        let aligned = at % size.bytes() == 0 && (frame + (at - first)) % size.bytes() == 0;
                        (aligned && first + bytes - at >= size.bytes()).then_some(size.bytes())
                    };
                    let bytes = match sizes {
                        Sizes::Only(size) => page(size)?,
                        Sizes::UpTo(bound) => {
                            PageSize::ALL.into_iter().filter(|&size| size <= bound).filter_map(page).max()?
                        }
                    };
                    let frame = frame + (at - first);
                    self.0.insert(at, Page { bytes, frame, rights, accessed: false, dirty: false });
                    at += bytes;
                }
            }
            Op::Unmap { first } => {
                let page = self.0.remove(&first)?;
                done.stale.push((first, first + page.bytes - 1));
                done.told.push((first, page));
            }
            Op::UnmapRange { first, bytes } => {
                if !whole(first, bytes) {
                    return None;
                }
                self.cut(first, &mut done.stale);
                self.cut(first + bytes, &mut done.stale);
                for (first, page) in self.overlapping(first, first + bytes - 1) {
                    self.0.remove(&first);
                    done.stale.push((first, first + page.bytes - 1));
                }
            }
            Op::Protect { first, rights } => {
                let page = *self.0.get(&first).filter(|_| sensible(rights))?;
                done.told.push((first, page));
                self.protect(first, rights, &mut done);
            }
            Op::ProtectRange { first, bytes, rights } => {
                if !(whole(first, bytes) && sensible(rights)) {
                    return None;
                }
                // What has the rights already is not split.
                for edge in [first, first + bytes] {
                    if self.containing(edge).is_some_and(|(_, page)| page.rights != rights) {
                        self.cut(edge, &mut done.stale);
                    }
                }
                for (page, _) in self.overlapping(first, first + bytes - 1) {
                    self.protect(page, rights, &mut done);
                }
            }
            Op::Split { address } => {
                let (first, page) = self.containing(address).filter(|(_, page)| page.bytes > K4)?;
                done.stale.push((first, first + page.bytes - 1));
                self.shatter(first);
            }
            Op::Join { first, size } => {
                let pieces: Vec<_> =
                    self.0.range(first..first + size.bytes()).map(|(_, page)| *page).collect();
                let head = *pieces.first().filter(|_| first % size.bytes() == 0 && pieces.len() == 512)?;
                let alike = pieces.iter().zip(0..).all(|(page, n)| {
                    let frame = head.frame + n * head.bytes;
                    (page.bytes, page.frame, page.rights) == (size.bytes() / 512, frame, head.rights)
                });
                if !alike || head.frame % size.bytes() != 0 {
                    return None;
                }
                self.0.retain(|&at, _| !(first..first + size.bytes()).contains(&at));
                let accessed = pieces.iter().any(|page| page.accessed);
                let dirty = pieces.iter().any(|page| page.dirty);
                self.0.insert(first, Page { bytes: size.bytes(), accessed, dirty, ..head });
                done.stale.push((first, first + size.bytes() - 1));
            }
            Op::ClearAccessed { first, bytes } | Op::ClearDirty { first, bytes } => {
                for (first, page) in self.overlapping(first, first + bytes - 1) {
                    let now = self.0.get_mut(&first).unwrap();
                    let flag = match op {
                        Op::ClearDirty { .. } => &mut now.dirty,
                        _ => &mut now.accessed,
                    };
                    if std::mem::take(flag) {
                        done.stale.push((first, first + page.bytes - 1));
                        done.told.push((first, page));
                    }
                }
            }
            Op::Touch { address, write } => {
                let (first, page) = self.containing(address)?;
                let right = if write { Rights::WRITE } else { Rights::READ };
                if !page.rights.contains(right) {
                    return None;
                }
                let page = self.0.get_mut(&first).unwrap();
                page.accessed = true;
                page.dirty |= write;
            }
        }
        Some(done)
    }

    fn protect(&mut self, first: u64, rights: Rights, done: &mut Expected) {
        let page = self.0.get_mut(&first).unwrap();
        if !rights.contains(page.rights) {
            done.stale.push((first, first + page.bytes - 1));
        }
        page.rights = rights;
    }

    /// How many tables it takes, with the root: one for each stretch of addresses that has a page.
    fn tables(&self, levels: u8) -> usize {
        let mut tables = BTreeSet::new();
        for (&first, page) in &self.0 {
            let mut bytes = page.bytes * 512;
            while bytes < K4 << (9 * u32::from(levels)) {
                tables.insert((bytes, first / bytes));
                bytes *= 512;
            }
        }
        1 + tables.len()
    }
}

/// The mapper and the tables under test. `high` is added to all addresses.
struct Subject {
    world: World,
    high: u64,
}

impl Subject {
    fn range(&self, first: u64, bytes: u64) -> AddrRange<Gva> {
        AddrRange::new(Gva(first + self.high), bytes.into()).unwrap()
    }

    fn apply(&mut self, op: Op) -> Result<(Flush, Vec<Mapping>), Error> {
        let (high, paging) = (self.high, self.world.paging);
        let range = |first, bytes| AddrRange::new(Gva(first + high), u128::from(bytes)).unwrap();
        let mut told = Vec::new();
        let page = |world: &World, rights| world.page(rights);
        let flush = match op {
            Op::Map { first, frame, size, rights } => {
                let page = page(&self.world, rights);
                self.world.mapper().map(first + high, frame, size, page).map(|()| Flush::NOTHING)
            }
            Op::MapRange { first, bytes, frame, sizes, rights } => {
                let page = page(&self.world, rights);
                let range = range(first, bytes);
                self.world.mapper().map_range(range, frame, sizes, page).map(|()| Flush::NOTHING)
            }
            Op::Unmap { first } => self.world.mapper().unmap(first + high).map(|(page, flush)| {
                told.push(page);
                flush
            }),
            Op::UnmapRange { first, bytes } => self.world.mapper().unmap_range(range(first, bytes)),
            Op::Protect { first, rights } => {
                let rights = self.world.rights(rights);
                self.world.mapper().protect(first + high, rights).map(|(page, flush)| {
                    told.push(page);
                    flush
                })
            }
            Op::ProtectRange { first, bytes, rights } => {
                let rights = self.world.rights(rights);
                self.world.mapper().protect_range(range(first, bytes), rights)
            }
            Op::Split { address } => self.world.mapper().split(address + high),
            Op::Join { first, size } => self.world.mapper().join(first + high, size),
            Op::ClearAccessed { first, bytes } => {
                self.world.mapper().clear_accessed(range(first, bytes), |page| told.push(page))
            }
            Op::ClearDirty { first, bytes } => {
                self.world.mapper().clear_dirty(range(first, bytes), |page| told.push(page))
            }
            Op::Touch { address, write } => {
                let access = if write { Access::WRITE } else { Access::READ };
                let touched = translate(&self.world, &paging, address + high, access, Flags::Set);
                touched.map(|_| Flush::NOTHING).map_err(|_| Error::NotMapped { address })
            }
        };
        flush.map(|flush| (flush, told))
    }

    fn page(&self, mapping: &Mapping) -> (u64, Page) {
        let (accessed, dirty) = self.world.flags();
        let page = Page {
            bytes: mapping.size.bytes(),
            frame: mapping.frame,
            rights: mapping.rights - Rights::USER,
            accessed: mapping.step.entry & accessed != 0,
            dirty: mapping.step.entry & dirty != 0,
        };
        (mapping.address - self.high, page)
    }

    fn pages(&self) -> Pages {
        Pages(self.world.pages().iter().map(|mapping| self.page(mapping)).collect())
    }

    /// Walks at each edge of each page, one byte to either side.
    fn walk_edges(&self, pages: &Pages) {
        for (&first, page) in &pages.0 {
            for probe in [first.wrapping_sub(1), first, first + page.bytes - 1, first + page.bytes] {
                let at = probe.wrapping_add(self.high);
                let walked = translate(&self.world, &self.world.paging, at, Access::READ, Flags::Keep).ok();
                let inside = pages.containing(probe);
                let expected = inside.map(|(first, page)| (page.frame + (probe - first), page.rights));
                let walked = walked.map(|leaf| (leaf.address, leaf.rights() - Rights::USER));
                assert_eq!(walked, expected, "{probe:#x}");
            }
        }
    }

    /// Applies `op` with an allocator that fails at each place where it can.
    fn apply_when_scarce(&mut self, op: Op) -> Result<(Flush, Vec<Mapping>), Error> {
        let before = self.world.image();
        for left in 0.. {
            self.world.left = left;
            let done = self.apply(op);
            if done.is_err() {
                assert!(self.world.image() == before, "{op:x?} is refused and has changed something");
                assert_eq!(self.world.left, left, "each table is given back");
            }
            if done != Err(Error::OutOfTables) {
                return done;
            }
        }
        unreachable!("some number of tables is enough")
    }
}

/// The flush covers what is stale, and reaches no further than the operation and the pages that it splits.
fn check_flush(op: Op, flush: Flush, stale: &[(u64, u64)], high: u64) {
    let found = flush.range::<Gva>().map(|range| (range.first().0 - high, range.last().0 - high));
    let hull = stale.iter().copied().reduce(|one, two| (one.0.min(two.0), one.1.max(two.1)));
    match (found, hull, op) {
        // Tables that go are stale too, and where no page is.
        (Some(found), Some(hull), Op::UnmapRange { first, bytes }) => {
            assert!(found.0 <= hull.0 && hull.1 <= found.1, "{op:x?}: {found:x?} {hull:x?}");
            let bounds = (first.min(hull.0), (first + bytes - 1).max(hull.1));
            assert!(bounds.0 <= found.0 && found.1 <= bounds.1, "{op:x?}: {found:x?} {bounds:x?}");
        }
        _ => assert_eq!(found, hull, "{op:x?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_mapper_refines_a_map_of_pages(
        format in prop::sample::select(FORMATS.to_vec()),
        upper: bool,
        ops in prop::collection::vec(op(), 1..30),
    ) {
        let world = World::new(format.0, format.1);
        let canonical = world.paging.format.translates(u64::MAX);
        let high = if upper && canonical { u64::MAX << 46 } else { 0 };
        let mut subject = Subject { world, high };
        let mut pages = Pages::default();
        for op in ops {
            let mut after = pages.clone();
            let expected = after.apply(op);
            let done = subject.apply_when_scarce(op);
            match (expected, done) {
                (Some(expected), Ok((flush, told))) => {
                    pages = after;
                    let told: Vec<_> = told.iter().map(|page| subject.page(page)).collect();
                    prop_assert_eq!(told, expected.told, "{:x?}", op);
                    check_flush(op, flush, &expected.stale, high);
                }
                (None, Err(_)) => {}
                (expected, done) => {
                    return Err(TestCaseError::fail(format!("{op:x?}: {done:x?}, not {}", expected.is_some())));
                }
            }
            let found = subject.pages();
            prop_assert!(found == pages, "{:x?}: {:x?}", op, differing(&found, &pages));
            prop_assert_eq!(subject.world.tables(), pages.tables(subject.world.paging.format.levels()), "{:x?}", op);
        }
        subject.walk_edges(&pages);
        let all = subject.range(0, 8 * G1);
        subject.world.left = usize::MAX;
        prop_assert_eq!(subject.world.mapper().unmap_range(all).map(|flush| flush.is_needed()), Ok(!pages.0.is_empty()));
        prop_assert_eq!(subject.world.tables(), 1, "only the root is left");
    }
}

/// Where two views differ first.
fn differing(one: &Pages, two: &Pages) -> Option<(u64, Option<Page>, Option<Page>)> {
    let keys = one.0.keys().chain(two.0.keys());
    keys.map(|key| (*key, one.0.get(key).copied(), two.0.get(key).copied())).find(|(_, one, two)| one != two)
}
