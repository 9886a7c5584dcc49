//! The dirty log as rings: rule D5, the errors of enabling, and what a reset does.

use std::collections::BTreeSet;

use memory_model::Gpa;
use slot_manager::{
    DirtyGfn, DirtyRing, Errno, KernelCaps, KernelMemslots, KvmArch, Memslot, RESERVED_ENTRIES,
};

use crate::{LOG, PAGE, region};

/// Two vCPUs with a ring of 256 entries each, and a slot that logs.
fn kernel() -> KernelMemslots {
    let mut kernel = KernelMemslots::new();
    kernel.enable_dirty_ring(4096).unwrap();
    assert_eq!((kernel.create_vcpu(), kernel.create_vcpu()), (0, 1));
    kernel.set_user_memory_region(&region(3, LOG, 0x1_0000, 1000 * PAGE, 0)).unwrap();
    kernel
}

fn write(kernel: &KernelMemslots, vcpu: u32, page: u64) -> bool {
    kernel.mark_page_dirty(Some(vcpu), 0, Gpa(0x1_0000 + page * PAGE))
}

/// What a VMM's reaper does: takes what is there, in order, from where it was.
fn reap(ring: &DirtyRing, next: &mut u32) -> Vec<DirtyGfn> {
    let mut found = Vec::new();
    while let Some(gfn) = ring.dirty_entry(*next) {
        ring.harvested(*next);
        *next = next.wrapping_add(1);
        found.push(gfn);
    }
    found
}

#[derive(Default)]
struct Protected(BTreeSet<u64>);

impl KvmArch for Protected {
    fn enable_log_dirty(&mut self, slot: &Memslot, first_page: u64, mask: u64) {
        self.0
            .extend((0..64).filter(|bit| mask >> bit & 1 != 0).map(|bit| slot.base_gfn() + first_page + bit));
    }
}

#[test]
fn enabling_has_its_errors_in_order() {
    let mut kernel = KernelMemslots::new();
    for (bytes, errno) in [
        (0, Errno::EINVAL),
        (6144, Errno::EINVAL),
        (2048, Errno::EINVAL),
        (3 << 20, Errno::EINVAL),
        (1 << 21, Errno::E2BIG),
        (1 << 32, Errno::EINVAL),
    ] {
        assert_eq!(kernel.enable_dirty_ring(bytes), Err(errno), "{bytes:#x}");
    }
    assert_eq!(kernel.reset_dirty_rings(), Err(Errno::EINVAL));
    kernel.enable_dirty_ring(1 << 20).unwrap();
    assert_eq!(kernel.enable_dirty_ring(1 << 20), Err(Errno::EINVAL), "a second time");
    assert_eq!(kernel.reset_dirty_rings(), Ok(0));
    let mut late = KernelMemslots::new();
    late.create_vcpu();
    assert_eq!(late.enable_dirty_ring(4096), Err(Errno::EINVAL));
    assert!(late.dirty_ring(0).is_none());
}

#[test]
fn d5_entries_go_from_the_vcpu_to_the_reaper_and_back_by_a_reset() {
    let mut kernel = kernel();
    let rings = [0, 1].map(|vcpu| kernel.dirty_ring(vcpu).unwrap().clone());
    for (vcpu, page) in [(0, 7), (1, 8), (0, 999)] {
        assert!(write(&kernel, vcpu, page));
    }
    let entry = |offset| DirtyGfn { slot: 3, offset };
    assert_eq!((rings[0].used(), rings[1].used(), rings[0].len()), (2, 1, 256));
    // Nothing is given back before it is harvested.
    assert_eq!(kernel.reset_dirty_rings(), Ok(0));
    let (mut first, mut second) = (0, 0);
    assert_eq!(reap(&rings[0], &mut first), [entry(7), entry(999)]);
    assert_eq!(reap(&rings[1], &mut second), [entry(8)]);
    assert_eq!(rings[0].used(), 2, "harvested is not reset");
    let mut mmu = Protected::default();
    assert_eq!(kernel.on(&mut mmu).reset_dirty_rings(), Ok(3));
    assert_eq!(mmu.0, BTreeSet::from([0x10 + 7, 0x10 + 8, 0x10 + 999]));
    assert!(rings[0].is_empty() && rings[1].is_empty());
    assert_eq!(kernel.reset_dirty_rings(), Ok(0));
    // The log is in the rings only.
    assert_eq!(kernel.get_dirty_log(3, &mut [0; 16]), Err(Errno::ENXIO));
    assert_eq!(kernel.clear_dirty_log(0x7fff, 1, 1, &[]), Err(Errno::ENXIO));
}

#[test]
fn d5_a_vcpu_leaves_at_the_soft_limit_and_a_full_ring_takes_no_more() {
    let kernel = kernel();
    let ring = kernel.dirty_ring(0).unwrap();
    let soft = u64::from(ring.len() - RESERVED_ENTRIES);
    for page in 0..256 {
        assert_eq!(ring.is_soft_full(), page >= soft, "{page}");
        assert!(write(&kernel, 0, page));
    }
    assert!(!write(&kernel, 0, 256), "the caller is told");
    assert_eq!(ring.dirty_entry(0), Some(DirtyGfn { slot: 3, offset: 0 }), "and nothing is overwritten");
}

#[test]
fn d5_a_reset_goes_up_to_the_first_entry_that_was_not_harvested() {
    let mut kernel = kernel();
    let ring = kernel.dirty_ring(0).unwrap().clone();
    for page in 0..3 {
        assert!(write(&kernel, 0, page));
    }
    ring.harvested(0);
    ring.harvested(2);
    ring.harvested(3);
    assert_eq!(
        (kernel.reset_dirty_rings(), ring.used()),
        (Ok(1), 2),
        "an entry nobody wrote is not harvested"
    );
    ring.harvested(1);
    assert_eq!((kernel.reset_dirty_rings(), ring.used()), (Ok(2), 0));
}

#[test]
fn d5_no_page_is_lost_as_the_ring_goes_round() {
    let mut kernel = kernel();
    let ring = kernel.dirty_ring(1).unwrap().clone();
    let (mut next, mut seen) = (0, Vec::new());
    let written: Vec<u64> = (0..5000u64).map(|step| step * 37 % 1000).collect();
    for page in &written {
        assert!(write(&kernel, 1, *page));
        if ring.is_soft_full() {
            seen.extend(reap(&ring, &mut next).iter().map(|gfn| gfn.offset));
            kernel.reset_dirty_rings().unwrap();
        }
    }
    seen.extend(reap(&ring, &mut next).iter().map(|gfn| gfn.offset));
    assert_eq!(seen, written);
}

#[test]
fn a_reset_after_the_slot_has_gone_or_shrunk_protects_nothing_of_it() {
    let mut kernel = kernel();
    let ring = kernel.dirty_ring(0).unwrap().clone();
    assert!(write(&kernel, 0, 5) && write(&kernel, 0, 500));
    kernel.set_user_memory_region(&region(3, 0, 0, 0, 0)).unwrap();
    kernel.set_user_memory_region(&region(3, LOG, 0, 10 * PAGE, 0)).unwrap();
    reap(&ring, &mut 0);
    let mut mmu = Protected::default();
    assert_eq!(kernel.on(&mut mmu).reset_dirty_rings(), Ok(2));
    assert_eq!(mmu.0, BTreeSet::from([5]));
}

#[test]
fn d6_bitmaps_besides_rings_hold_what_no_vcpu_wrote() {
    let caps = KernelCaps { ring_with_bitmap: true, ..KernelCaps::default() };
    let mut kernel = KernelMemslots::with_caps(caps);
    assert_eq!(kernel.enable_dirty_ring_with_bitmap(), Err(Errno::EINVAL), "without rings");
    kernel.enable_dirty_ring(4096).unwrap();
    let slot = region(3, LOG, 0x1_0000, 10 * PAGE, 0);
    kernel.set_user_memory_region(&slot).unwrap();
    assert_eq!(kernel.enable_dirty_ring_with_bitmap(), Err(Errno::EINVAL), "with slots");
    kernel.set_user_memory_region(&region(3, 0, 0, 0, 0)).unwrap();
    kernel.enable_dirty_ring_with_bitmap().unwrap();
    kernel.create_vcpu();
    kernel.set_user_memory_region(&slot).unwrap();
    assert!(write(&kernel, 0, 1) && kernel.mark_page_dirty(None, 0, Gpa(0x1_2000)));
    let mut bitmap = [0];
    kernel.get_dirty_log(3, &mut bitmap).unwrap();
    assert_eq!((bitmap, kernel.dirty_ring(0).unwrap().used()), ([1 << 2], 1));
    let mut x86 = KernelMemslots::new();
    x86.enable_dirty_ring(4096).unwrap();
    assert_eq!(x86.enable_dirty_ring_with_bitmap(), Err(Errno::EINVAL));
}
