//! A processor walks the tables while they are changed under it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ept::{
    Access, Attributes, Controls, Cr3, EptCaps, Eptp, Error, Fault, Flags, Format, FrameAllocator, Ia32e,
    Kind, Levels, Mapper, MaxPhyAddr, MemoryError, PageFaultCode, Paging, PhysMemory, Rights, Sizes, walk,
};
use memory_model::{AddrRange, Gpa, PageSize};

use super::world::{G1, K4, M2};

const FRAMES: u64 = 1024;
const ROOT: u64 = 0x1000;
/// Each page is mapped to the frame that is so far away.
const OFFSET: u64 = 8 * G1;

/// Memory for tables, and what its walker tells.
struct Arena {
    entries: Vec<AtomicU64>,
    /// Walks finished.
    walks: AtomicU64,
    stop: AtomicBool,
}

impl Arena {
    fn new() -> Self {
        let entries = (0..FRAMES * 512).map(|_| AtomicU64::new(0)).collect();
        Self { entries, walks: AtomicU64::new(0), stop: AtomicBool::new(false) }
    }

    fn entry(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        self.entries.get((address / 8) as usize).ok_or(MemoryError::Absent { address })
    }
}

impl PhysMemory for Arena {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        Ok(self.entry(address)?.load(Ordering::Acquire))
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let done = self.entry(address)?.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        Ok(done.is_ok())
    }
    fn write_entries(&self, address: u64, entries: &[u64]) -> Result<(), MemoryError> {
        for (at, &entry) in (address..).step_by(8).zip(entries) {
            self.entry(at)?.store(entry, Ordering::Release);
        }
        Ok(())
    }
}

/// The arena with an allocator that gives a table out again once the walk has ended that may have seen it, as after a
/// flush; and that fills it with what a walker must not see.
struct Tables<'a> {
    arena: &'a Arena,
    next: u64,
    freed: VecDeque<(u64, u64)>,
}

impl PhysMemory for Tables<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.arena.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.arena.compare_exchange(address, current, new)
    }
    fn write_entries(&self, address: u64, entries: &[u64]) -> Result<(), MemoryError> {
        self.arena.write_entries(address, entries)
    }
}

impl FrameAllocator for Tables<'_> {
    fn allocate_table(&mut self) -> Option<u64> {
        let walks = self.arena.walks.load(Ordering::Acquire);
        let table = match self.freed.front() {
            Some(&(table, then)) if walks > then => {
                self.freed.pop_front();
                table
            }
            _ => {
                self.next = (self.next < FRAMES * K4).then_some(self.next + K4)?;
                self.next - K4
            }
        };
        self.write_entries(table, &[2; 512]).unwrap();
        Some(table)
    }
    fn free_table(&mut self, frame: u64) {
        self.freed.push_back((frame, self.arena.walks.load(Ordering::Acquire)));
    }
}

fn paging(kind: Kind) -> Paging {
    let width = MaxPhyAddr::new(40).unwrap();
    let processor = Ia32e::new(Levels::Four, width);
    let caps = EptCaps::all() - EptCaps::EXECUTE_ONLY;
    match kind {
        Kind::Ept => Paging::ept(Eptp::for_root(ROOT, Levels::Four, true, caps, width).unwrap(), caps, width),
        Kind::Npt => Paging::new(Format::npt(processor), ROOT),
        _ => Paging::ia32e(Cr3::new(ROOT, width).unwrap(), processor, Controls::WP),
    }
}

/// Stops the walker when the test ends, however it ends.
struct Stop<'a>(&'a Arena);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// Numbers that differ from each other (Marsaglia's xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn pages(first: u64, bytes: u64) -> AddrRange<Gpa> {
    AddrRange::new(Gpa(first), bytes.into()).unwrap()
}

fn rights(kind: Kind, rights: Rights) -> Rights {
    if kind == Kind::Ept { rights } else { rights | Rights::USER }
}

/// Always mapped: four large pages, and a huge one. Mapped and unmapped: what lies at `HOLES`.
const LARGE: u64 = 4 * M2;
const HOLES: u64 = 8 * M2;
const HOLES_BYTES: u64 = 4 * M2;

/// Reads at random addresses till told to stop. What it sees must be right; returns how often it saw a page and a hole.
fn keep_walking(arena: &Arena, paging: &Paging) -> [u64; 2] {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut seen = [0; 2];
    while !arena.stop.load(Ordering::Relaxed) {
        let address = match random.below(4) {
            0 => HOLES + random.below(HOLES_BYTES),
            1 => G1 + random.below(G1),
            2 => G1 + random.below(M2),
            _ => random.below(LARGE),
        };
        let flags = if random.below(2) == 0 { Flags::Set } else { Flags::Keep };
        let walked = walk(arena, paging, address, Access::READ.by_user(), flags);
        let may_be_absent = (HOLES..HOLES + HOLES_BYTES).contains(&address);
        match walked.outcome {
            Ok(leaf) => assert_eq!(leaf.address, address + OFFSET, "{:x?}", walked.path),
            Err(Fault::EptViolation { .. }) if may_be_absent => {}
            Err(Fault::PageFault { code }) if may_be_absent && !code.contains(PageFaultCode::RESERVED) => {}
            Err(fault) => panic!("{address:#x}: {fault} {:x?}", walked.path),
        }
        seen[usize::from(walked.outcome.is_err())] += 1;
        arena.walks.fetch_add(1, Ordering::Release);
    }
    seen
}

/// One change at random; an error is one that the state of the tables explains.
fn change(mapper: &mut Mapper<'_, Tables<'_>>, kind: Kind, random: &mut Random) -> Result<(), Error> {
    let page = Attributes::ram(kind, rights(kind, Rights::RWX));
    let some = [Rights::READ, Rights::READ | Rights::WRITE, Rights::RWX][random.below(3) as usize];
    let large = random.below(4) * M2;
    let huge = G1 + random.below(512) * M2;
    let (first, count) = (random.below(HOLES_BYTES / K4), 1 + random.below(700));
    let hole = pages(HOLES + first * K4, count.min(HOLES_BYTES / K4 - first) * K4);
    match random.below(10) {
        0 => mapper.split(large + random.below(M2)).map(|_| ()),
        1 => mapper
            .protect_range(pages(0, LARGE), page.rights)
            .and_then(|_| mapper.join(large, PageSize::Size2M))
            .map(|_| ()),
        2 => mapper.protect_range(pages(large + 5 * K4, 77 * K4), rights(kind, some)).map(|_| ()),
        3 => mapper.split(G1 + random.below(M2)).map(|_| ()),
        4 => mapper.split(huge).map(|_| ()),
        5 => mapper
            .protect_range(pages(huge, M2), page.rights)
            .and_then(|_| mapper.join(huge, PageSize::Size2M))
            .map(|_| ()),
        6 => {
            let _ = mapper.protect_range(pages(G1, G1), page.rights)?;
            for at in 0..512 {
                let _ = mapper.join(G1 + at * M2, PageSize::Size2M);
            }
            mapper.join(G1, PageSize::Size1G).map(|_| ())
        }
        7 | 8 => {
            let sizes = Sizes::UpTo(if random.below(2) == 0 { PageSize::Size4K } else { PageSize::Size1G });
            mapper.map_range(hole, hole.first().0 + OFFSET, sizes, page)
        }
        _ => mapper.unmap_range(hole).map(|_| ()),
    }
}

#[test]
fn a_walker_sees_no_broken_entry_no_wrong_frame_and_no_hole() {
    for kind in [Kind::Ept, Kind::Ia32e, Kind::Npt] {
        let (arena, paging) = (Arena::new(), paging(kind));
        let mut tables = Tables { arena: &arena, next: ROOT + K4, freed: VecDeque::new() };
        let page = Attributes::ram(kind, rights(kind, Rights::RWX));
        let mut mapper = Mapper::new(&mut tables, paging);
        mapper.map_range(pages(0, LARGE), OFFSET, Sizes::Only(PageSize::Size2M), page).unwrap();
        mapper.map(G1, G1 + OFFSET, PageSize::Size1G, page).unwrap();
        let (seen, done) = thread::scope(|scope| {
            let walker = scope.spawn(|| keep_walking(&arena, &paging));
            let stop = Stop(&arena);
            let mut random = Random(0x2545_f491_4f6c_dd1d);
            let mut done = 0;
            while done < 1500 && !walker.is_finished() {
                match change(&mut mapper, kind, &mut random) {
                    Ok(()) => done += 1,
                    Err(Error::NotLarge { .. } | Error::NotJoinable { .. } | Error::Overlap { .. }) => {}
                    Err(Error::OutOfTables) => thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
            drop(stop);
            (walker.join().expect("what the walker has seen"), done)
        });
        assert_eq!(done, 1500);
        assert!(seen[0] > 1000 && seen[1] > 10, "{seen:?}");
    }
}

/// Rule A3: each of many pages is written once. However the flags are cleared and rights changed meanwhile, each is
/// told as dirty.
#[test]
fn a3_no_write_is_lost_while_flags_are_cleared() {
    const PAGES: u64 = 4096;
    const DENIED: PageFaultCode =
        PageFaultCode::PRESENT.union(PageFaultCode::WRITE).union(PageFaultCode::USER);
    let all = pages(0, PAGES * K4);
    for kind in [Kind::Ept, Kind::Ia32e] {
        let (arena, paging) = (Arena::new(), paging(kind));
        let mut tables = Tables { arena: &arena, next: ROOT + K4, freed: VecDeque::new() };
        let mut mapper = Mapper::new(&mut tables, paging);
        let page = Attributes::ram(kind, rights(kind, Rights::RWX));
        for round in 0..20 {
            mapper.map_range(all, OFFSET, Sizes::Only(PageSize::Size4K), page).unwrap();
            let mut dirty = vec![0; PAGES as usize];
            let told = |dirty: &mut Vec<u32>, address: u64| dirty[(address / K4) as usize] += 1;
            thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    for n in 0..PAGES {
                        let write =
                            || walk(&arena, &paging, n * K4, Access::WRITE.by_user(), Flags::Set).outcome;
                        // Again while the page is read-only.
                        while let Err(fault) = write() {
                            let denied = matches!(fault, Fault::EptViolation { .. })
                                || fault == Fault::PageFault { code: DENIED };
                            assert!(denied && !arena.stop.load(Ordering::Relaxed), "{fault}");
                        }
                    }
                });
                let stop = Stop(&arena);
                let mut random = Random(round + 1);
                while !writer.is_finished() {
                    let some = pages(random.below(PAGES - 64) * K4, 64 * K4);
                    let _ = mapper.clear_dirty(some, |page| told(&mut dirty, page.address)).unwrap();
                    let _ = mapper.protect_range(some, rights(kind, Rights::READ)).unwrap();
                    let _ = mapper.protect_range(some, page.rights).unwrap();
                    let _ = mapper.clear_accessed(all, |_| ()).unwrap();
                }
                core::mem::forget(stop);
            });
            let _ = mapper.clear_dirty(all, |page| told(&mut dirty, page.address)).unwrap();
            let lost: Vec<_> = (0..PAGES).filter(|&n| dirty[n as usize] != 1).collect();
            assert!(lost.is_empty(), "{kind:?}, round {round}: pages {lost:?} are not told once");
            let _ = mapper.unmap_range(all).unwrap();
        }
    }
}
