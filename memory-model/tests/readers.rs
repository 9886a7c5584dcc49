//! Many readers beside a writer: real threads, no sleeps, a fixed amount of work.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use memory_model::{AddressSpace, FlatView, Gpa, Hva, MemoryError, RamBlock, RegionId, RegionTree};

const PAGE: u64 = 0x1000;
const PAGES: u64 = 300;
const READERS: usize = 4;
const UPDATES: u64 = 2_000;

/// A window that moves: the two regions in it are always side by side, and all that is seen below it belongs
/// to the very same update.
fn check(view: &FlatView, left: RegionId, right: RegionId) -> u64 {
    let ranges: Vec<_> = view.ranges().filter(|range| [left, right].contains(&range.region)).collect();
    let [one, two] = ranges[..] else { panic!("{view}") };
    assert!(one.region == left && two.region == right, "{view}");
    assert_eq!(one.range.last().0 + 1, two.range.first().0, "{view}");
    let at = one.range.first().0;
    assert_eq!(view.find(Gpa(at)).map(|range| range.region), Some(left));
    assert_eq!(view.hva(Gpa(at + 2 * PAGE - 1)), Some(Hva(0x7001_0000_0000 + PAGE - 1)));
    at
}

#[test]
fn r19_readers_see_whole_updates_and_never_go_back() {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    for page in 0..PAGES {
        let filler = tree.reservation("filler", PAGE.into()).unwrap();
        tree.add(tree.root(), page * 2 * PAGE, filler).unwrap();
    }
    let [left, right] = [0x7000_0000_0000, 0x7001_0000_0000].map(|hva| {
        let block = RamBlock::foreign("ram", Hva(hva), PAGE).unwrap();
        tree.ram("ram", block).unwrap()
    });
    let base = 1 << 40;
    tree.add(tree.root(), base, left).unwrap();
    tree.add(tree.root(), base + PAGE, right).unwrap();
    let space = AddressSpace::new("memory", tree).unwrap();
    let (done, looks) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for reader in 0..READERS {
            let (space, done, looks) = (&space, &done, &looks);
            scope.spawn(move || {
                let mut cached = space.reader();
                let mut newest = 0;
                loop {
                    let last = done.load(Ordering::Acquire);
                    let snapshot = if reader % 2 == 0 { space.view() } else { cached.view().clone() };
                    let seen = check(&snapshot, left, right);
                    assert!(seen >= newest, "a reader went back from {newest:#x} to {seen:#x}");
                    newest = seen;
                    looks.fetch_add(1, Ordering::Relaxed);
                    if last {
                        assert_eq!(newest, base + UPDATES * PAGE, "the last update is seen at the end");
                        return;
                    }
                }
            });
        }
        for update in 1..=UPDATES {
            let moved = space.update(|tree| {
                tree.set_offset(left, base + update * PAGE)?;
                tree.set_offset(right, base + (update + 1) * PAGE)?;
                if update % 7 == 0 { tree.set_size(left, 0) } else { Ok(()) }
            });
            if update % 7 == 0 {
                assert!(matches!(moved, Err(MemoryError::BadSize { .. })));
                // Once more, without the mistake.
                let again = space.update(|tree| {
                    tree.set_offset(left, base + update * PAGE)?;
                    tree.set_offset(right, base + (update + 1) * PAGE)
                });
                again.unwrap();
            }
        }
        done.store(true, Ordering::Release);
    });
    assert!(looks.into_inner() >= READERS as u64);
}

#[test]
fn writers_on_several_threads_wait_for_one_another() {
    let tree = RegionTree::new("system", 1 << 64).unwrap();
    let space = AddressSpace::new("memory", tree).unwrap();
    thread::scope(|scope| {
        for writer in 0..4_u64 {
            let space = &space;
            scope.spawn(move || {
                for index in 0..100 {
                    let add = |tree: &mut RegionTree| {
                        let id = tree.reservation("mine", 0x10)?;
                        tree.add(tree.root(), (index * 4 + writer) * 0x100, id)
                    };
                    space.update(add).unwrap();
                }
            });
        }
    });
    assert_eq!(space.view().len(), 400);
}
