//! The dirty log as a bitmap: rules D1 to D3, the errors in order, and no page lost.

use std::collections::BTreeSet;

use memory_model::Gpa;
use proptest::prelude::*;
use slot_manager::{Errno, KernelMemslots, KvmArch, Memslot};

use crate::{LOG, PAGE, region, two_slots};

/// A slot of 70 pages at 0x10000 that logs: its bitmap has two words, the last one not full.
fn logged(manual_protect: u64) -> KernelMemslots {
    let mut kernel = KernelMemslots::new();
    kernel.enable_manual_protect(manual_protect).unwrap();
    kernel.set_user_memory_region(&region(0, LOG, 0x1_0000, 70 * PAGE, 0)).unwrap();
    kernel
}

fn mark(kernel: &KernelMemslots, page: u64) {
    assert!(kernel.mark_page_dirty(None, 0, Gpa(0x1_0000 + page * PAGE + 0x10)));
}

fn log(kernel: &mut KernelMemslots) -> [u64; 2] {
    let mut bitmap = [!0; 2];
    kernel.get_dirty_log(0, &mut bitmap).unwrap();
    bitmap
}

/// Remembers which pages are to fault again.
#[derive(Default)]
struct Protected(Vec<(u64, u64)>);

impl KvmArch for Protected {
    fn enable_log_dirty(&mut self, _slot: &Memslot, first_page: u64, mask: u64) {
        self.0.push((first_page, mask));
    }
}

#[test]
fn d1_without_manual_protect_reading_clears_and_protects() {
    let mut kernel = logged(0);
    for page in [0, 5, 69] {
        mark(&kernel, page);
    }
    // Outside the slot, and in one that does not log: nothing to note.
    assert!(kernel.mark_page_dirty(None, 0, Gpa(0)) && kernel.mark_page_dirty(None, 9, Gpa(0x1_0000)));
    let (mut mmu, mut bitmap) = (Protected::default(), [!0; 3]);
    kernel.on(&mut mmu).get_dirty_log(0, &mut bitmap).unwrap();
    assert_eq!(bitmap, [1 | 1 << 5, 1 << 5, !0], "whole words and no more");
    assert_eq!(mmu.0, [(0, 1 | 1 << 5), (64, 1 << 5)]);
    assert_eq!(log(&mut kernel), [0, 0]);
}

#[test]
fn d1_with_manual_protect_reading_only_reads() {
    let mut kernel = logged(1);
    mark(&kernel, 69);
    let mut mmu = Protected::default();
    kernel.on(&mut mmu).get_dirty_log(0, &mut [0; 2]).unwrap();
    assert_eq!((mmu.0, log(&mut kernel), log(&mut kernel)), (vec![], [0, 1 << 5], [0, 1 << 5]));
}

#[test]
fn d2_initially_set_needs_manual_protect_and_works_on_the_next_log() {
    let mut kernel = logged(0);
    for (flags, answer) in
        [(2, Err(Errno::EINVAL)), (4, Err(Errno::EINVAL)), (5, Err(Errno::EINVAL)), (0, Ok(())), (3, Ok(()))]
    {
        assert_eq!(kernel.enable_manual_protect(flags), answer, "{flags}");
    }
    assert_eq!(log(&mut kernel), [0, 0], "a log that is there stays as it is");
    for flags in [0, LOG] {
        kernel.set_user_memory_region(&region(0, flags, 0x1_0000, 70 * PAGE, 0)).unwrap();
    }
    assert_eq!(log(&mut kernel), [!0, 0x3f], "none past the end");
    kernel.enable_manual_protect(0).unwrap();
    assert_eq!((log(&mut kernel), log(&mut kernel)), ([!0, 0x3f], [0, 0]));
}

#[test]
fn d3_clearing_works_without_manual_protect_with_no_pages_and_with_bits_past_the_end() {
    let mut kernel = logged(0);
    for page in [0, 1, 64, 69] {
        mark(&kernel, page);
    }
    let mut mmu = Protected::default();
    kernel.on(&mut mmu).clear_dirty_log(0, 0, 0, &[]).unwrap();
    kernel.on(&mut mmu).clear_dirty_log(0, 64, 6, &[!1]).unwrap();
    kernel.on(&mut mmu).clear_dirty_log(0, 0, 64, &[1 | 1 << 9]).unwrap();
    assert_eq!(mmu.0, [(64, 1 << 5), (0, 1)], "only pages that were dirty");
    assert_eq!(log(&mut kernel), [1 << 1, 1]);
}

#[test]
fn moves_keep_the_log_and_all_else_starts_it_afresh() {
    let mut kernel = logged(0);
    let mut set = |flags, gpa, pages| {
        mark(&kernel, 3);
        kernel.set_user_memory_region(&region(0, flags, gpa, pages * PAGE, 0)).unwrap();
        let mut bitmap = [0; 2];
        let answer = kernel.get_dirty_log(0, &mut bitmap).map(|()| bitmap[0]);
        kernel.set_user_memory_region(&region(0, 0, 0, 0, 0)).ok();
        kernel.set_user_memory_region(&region(0, LOG, 0x1_0000, 70 * PAGE, 0)).unwrap();
        answer
    };
    assert_eq!(set(LOG, 0x100_0000, 70), Ok(8));
    assert_eq!(set(LOG, 0x1_1000, 70), Ok(8), "over its own old place");
    assert_eq!(set(0, 0x1_0000, 70), Err(Errno::ENOENT));
    assert_eq!(set(0, 0x100_0000, 70), Err(Errno::ENOENT));
    assert_eq!(set(0, 0, 0), Err(Errno::ENOENT));
    assert_eq!(log(&mut kernel), [0, 0]);
}

#[test]
fn the_errors_of_reading_and_clearing_come_in_order() {
    let mut kernel = two_slots();
    for (slot, errno) in [
        (32764, Errno::EINVAL),
        (1 << 16 | 1, Errno::EINVAL),
        (2, Errno::ENOENT),
        (0, Errno::ENOENT),
        (1, Errno::EFAULT),
    ] {
        assert_eq!(kernel.get_dirty_log(slot, &mut []), Err(errno), "{slot:#x}");
    }
    for (slot, first_page, num_pages, errno) in [
        (32764, 1, 9, Errno::EINVAL),
        (1 << 16, 1, 9, Errno::EINVAL),
        (0, 1, 9, Errno::EINVAL),
        (0, 64, 9, Errno::ENOENT),
        (1, 64, 0, Errno::EINVAL),
        (1, !63, u32::MAX, Errno::EINVAL),
        (1, 0, 5, Errno::EINVAL),
        (1, 0, 3, Errno::EINVAL),
        (1, 0, 4, Errno::EFAULT),
    ] {
        let answer = kernel.clear_dirty_log(slot, first_page, num_pages, &[]);
        assert_eq!(answer, Err(errno), "{slot:#x} {first_page:#x} {num_pages:#x}");
    }
}

#[test]
fn a_log_that_cannot_be_handed_over_is_lost_unless_the_protection_is_manual() {
    for (manual, kept) in [(0, 0), (1, 1 << 7)] {
        let mut kernel = logged(manual);
        mark(&kernel, 7);
        assert_eq!(kernel.get_dirty_log(0, &mut [0]), Err(Errno::EFAULT));
        assert_eq!(log(&mut kernel), [kept, 0]);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64),
    Get,
    Clear { first_word: u64, pages: u32, mask: u64 },
    Move(u64),
    Manual(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..200u64).prop_map(Step::Write),
        2 => Just(Step::Get),
        2 => (0..4u64, 0..210u32, any::<u64>())
            .prop_map(|(first_word, pages, mask)| Step::Clear { first_word, pages, mask }),
        1 => (0..50u64).prop_map(Step::Move),
        1 => any::<bool>().prop_map(Step::Manual),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The oracle is a set of pages.
    #[test]
    fn every_write_is_in_the_log_until_it_is_read_or_cleared(steps in steps()) {
        const PAGES: u64 = 200;
        let mut kernel = KernelMemslots::new();
        let (mut gfn, mut manual) = (0x10, false);
        let place = |gfn: u64| region(0, LOG, gfn * PAGE, PAGES * PAGE, 0);
        kernel.set_user_memory_region(&place(gfn)).unwrap();
        let mut dirty = BTreeSet::new();
        for step in steps {
            match step {
                Step::Write(page) => {
                    prop_assert!(kernel.mark_page_dirty(None, 0, Gpa((gfn + page) * PAGE)));
                    dirty.insert(page);
                }
                Step::Get => {
                    let mut bitmap = [0; 4];
                    kernel.get_dirty_log(0, &mut bitmap).unwrap();
                    let logged = (0..256).filter(|page| bitmap[page / 64] >> (page % 64) & 1 != 0);
                    prop_assert_eq!(logged.map(|page| page as u64).collect::<BTreeSet<_>>(), dirty.clone());
                    if !manual {
                        dirty.clear();
                    }
                }
                Step::Clear { first_word, pages, mask } => {
                    let first = first_word * 64;
                    let end = first + u64::from(pages);
                    let legal = end <= PAGES && (pages % 64 == 0 || end == PAGES);
                    let answer = kernel.clear_dirty_log(0, first, pages, &[mask; 4]);
                    prop_assert_eq!(answer, if legal { Ok(()) } else { Err(Errno::EINVAL) });
                    if legal {
                        dirty.retain(|page| !(first..end).contains(page) || mask >> (page % 64) & 1 == 0);
                    }
                }
                Step::Move(to) => {
                    gfn = to;
                    kernel.set_user_memory_region(&place(gfn)).unwrap();
                }
                Step::Manual(on) => {
                    manual = on;
                    kernel.enable_manual_protect(on.into()).unwrap();
                }
            }
        }
    }
}
