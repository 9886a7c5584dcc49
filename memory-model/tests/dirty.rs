//! Dirty bits: against a set of pages, per client, and with writers beside the taker.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use memory_model::{DirtyBitmap, DirtyClients, RamBlock};
use proptest::prelude::*;

const PAGE: u64 = 0x1000;

#[test]
fn r41_clearing_one_client_leaves_the_others() {
    let block = RamBlock::anonymous("ram", 0x10_0000).unwrap();
    block.mark_dirty(0x2fff, 2, DirtyClients::VGA | DirtyClients::MIGRATION);
    block.mark_dirty(0x5000, 1, DirtyClients::CODE);
    let taken = block.snapshot_and_clear_dirty(0..0x10_0000, DirtyClients::VGA);
    assert_eq!(taken.pages().collect::<Vec<_>>(), [0x2000, 0x3000]);
    assert!(!block.is_dirty(0, 0x10_0000, DirtyClients::VGA));
    assert!(block.is_dirty(0x2000, 1, DirtyClients::MIGRATION));
    assert!(!block.is_dirty(0x5000, 1, DirtyClients::MIGRATION));
    let rest = block.snapshot_and_clear_dirty(0..0x10_0000, DirtyClients::all());
    assert_eq!(rest.pages().collect::<Vec<_>>(), [0x2000, 0x3000, 0x5000]);
    assert!(block.snapshot_and_clear_dirty(0..0x10_0000, DirtyClients::all()).is_empty());
}

#[test]
fn what_lies_outside_is_ignored() {
    let dirty = DirtyBitmap::new(3 * PAGE);
    dirty.mark(3 * PAGE, PAGE);
    dirty.mark(u64::MAX, 1);
    dirty.mark(0, 0);
    dirty.mark(PAGE + 5, 0);
    assert!(dirty.snapshot_and_clear(0..u64::MAX).is_empty());
    dirty.mark(2 * PAGE, u64::MAX);
    assert!(!dirty.is_dirty(0, 2 * PAGE) && !dirty.is_dirty(3 * PAGE, u64::MAX));
    assert_eq!(dirty.snapshot_and_clear(0..u64::MAX).pages().collect::<Vec<_>>(), [2 * PAGE]);
    DirtyBitmap::new(0).mark(0, 1);
}

#[derive(Clone, Debug)]
enum Step {
    Mark(u64, u64),
    Take(u64, u64),
}

/// More than 64 words of 64 pages, which can be taken at once.
const BYTES: u64 = 5000 * PAGE;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offset = || (0..BYTES + 4 * PAGE).prop_map(|at| at - at % 3);
    let len = prop_oneof![0..3_u64, 0..3 * PAGE, 0..BYTES];
    let mark = (offset(), len).prop_map(|(at, len)| Step::Mark(at, len));
    let end = || prop_oneof![Just(0), Just(BYTES), offset()];
    let take = (end(), end()).prop_map(|(one, two)| Step::Take(one.min(two), one.max(two)));
    prop::collection::vec(prop_oneof![3 => mark, 1 => take], 1..40)
}

proptest! {
    #[test]
    fn a_bitmap_is_a_set_of_pages(steps in steps()) {
        let dirty = DirtyBitmap::new(BYTES);
        let mut oracle = BTreeSet::new();
        for step in steps {
            match step {
                Step::Mark(at, len) => {
                    dirty.mark(at, len);
                    oracle.extend((0..5000).filter(|page| page * PAGE < at + len && at < (page + 1) * PAGE && len > 0));
                }
                Step::Take(start, end) => {
                    let taken = dirty.snapshot_and_clear(start..end);
                    let inside = |&page: &u64| page * PAGE < end && start < (page + 1) * PAGE && start < end;
                    let wanted: Vec<u64> = oracle.iter().copied().filter(inside).collect();
                    oracle.retain(|page| !inside(page));
                    prop_assert_eq!(taken.pages().map(|at| at / PAGE).collect::<Vec<_>>(), wanted.clone());
                    prop_assert_eq!(taken.count(), wanted.len() as u64);
                    prop_assert!(wanted.iter().all(|page| taken.contains(page * PAGE + 7)));
                    prop_assert!((0..5000).filter(|page| taken.contains(page * PAGE)).count() == wanted.len());
                }
            }
            for page in [0, 63, 64, 4095, 4096, 4999] {
                prop_assert_eq!(dirty.is_dirty(page * PAGE, 1), oracle.contains(&page));
            }
        }
    }
}

/// What live migration relies on: a page written while bits are taken reaches the copy within a few snapshots,
/// though nobody writes it again. The pages share a word, and most snapshots leave one of them out.
#[test]
fn no_mark_is_lost_between_writers_and_taker() {
    const WRITERS: u64 = 2;
    const WRITES: u64 = 5_000;
    let dirty = DirtyBitmap::new(WRITERS * PAGE);
    let [memory, copy] = [(); 2].map(|()| [const { AtomicU64::new(0) }; WRITERS as usize]);
    let (rounds, writing) = (AtomicU64::new(0), AtomicU64::new(WRITERS));
    let ranges = [0..WRITERS * PAGE, 0..PAGE, PAGE..2 * PAGE];
    let lost = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (memory, copy, rounds, writing) =
                    (&memory[writer as usize], &copy[writer as usize], &rounds, &writing);
                let (dirty, ranges) = (&dirty, &ranges);
                scope.spawn(move || {
                    let mut lost = 0;
                    for value in 1..=WRITES {
                        memory.store(value, Ordering::Relaxed);
                        dirty.mark(writer * PAGE, 8);
                        // The snapshot under way may have begun before; then each range has its turn.
                        let enough = rounds.load(Ordering::Acquire) + 1 + ranges.len() as u64;
                        while rounds.load(Ordering::Acquire) < enough {
                            thread::yield_now();
                        }
                        lost += u64::from(copy.load(Ordering::Relaxed) != value);
                    }
                    writing.fetch_sub(1, Ordering::Relaxed);
                    lost
                })
            })
            .collect();
        for range in ranges.iter().cycle() {
            for page in dirty.snapshot_and_clear(range.clone()).pages().map(|at| (at / PAGE) as usize) {
                copy[page].store(memory[page].load(Ordering::Relaxed), Ordering::Relaxed);
            }
            rounds.fetch_add(1, Ordering::Release);
            if writing.load(Ordering::Relaxed) == 0 {
                break;
            }
        }
        writers.into_iter().map(|writer| writer.join().expect("no panic")).sum::<u64>()
    });
    assert_eq!(lost, 0);
}
