//! Rule D3: access tracking, with A and without.

use std::sync::atomic::Ordering::Relaxed;

use ept::mmu::{FaultOutcome, SpteBits};
use ept::{Access, EptCaps, Format, Kind, Levels};
use memory_model::PageSize;

use super::host::{G1, K4, M2, World, ept_format, npt, range, world};

fn machine(format: Format, size: PageSize) -> World {
    let World { host, slots, .. } = world(size);
    World::new(format, slots.slots[0], host.mapped[0])
}

fn without_flags(size: PageSize) -> World {
    machine(ept_format(false, EptCaps::all()), size)
}

#[test]
fn d3_a_page_is_young_after_an_access_and_old_after_ageing() {
    let with = ept_format(true, EptCaps::all());
    for format in [with, ept_format(false, EptCaps::all()), npt(Levels::Four), npt(Levels::Five)] {
        for size in [PageSize::Size4K, PageSize::Size2M] {
            let world = machine(format, size);
            world.touch_all();
            let test = |at, bytes| world.tdp.test_age(range(at, bytes), &world.host).unwrap();
            assert!(test(M2, K4) && test(0, G1) && !test(0, M2) && !test(5 * M2, G1));
            let flushes = world.tdp.stats().remote_tlb_flush_requests;
            assert!(world.tdp.age(range(M2, M2), &world.host).unwrap());
            assert!(!test(M2, M2) && test(2 * M2, K4));
            assert!(!world.tdp.age(range(M2, M2), &world.host).unwrap());
            assert_eq!(world.tdp.stats().remote_tlb_flush_requests, flushes, "no flush");
            world.access(M2 + 5 * K4, Access::READ).unwrap();
            assert!(test(M2, M2), "{size} {:?}", format.kind());
            assert_eq!(test(M2 + 6 * K4, K4), size == PageSize::Size2M);
        }
    }
}

#[test]
fn d3_without_a_the_rights_are_put_away_and_a_fast_fault_brings_them_back() {
    let bits = SpteBits::of(Kind::Ept);
    let world = without_flags(PageSize::Size4K);
    world.access(M2, Access::WRITE).unwrap();
    let step = world.leaf(M2).step;
    world.tdp.age(range(M2, K4), &world.host).unwrap();
    assert!(world.leaves().is_empty(), "hardware sees no page");
    assert_eq!(world.tdp.stats().pages_4k, 1, "but it is there");
    let read = |world: &World| ept::PhysMemory::read_entry(&world.host, step.entry_address()).unwrap();
    let tracked = read(&world);
    assert_eq!(tracked, step.entry & !7 | 1 << 54 | 1 << 56);
    assert!(bits.is_present(tracked));

    let asked = world.host.asked.load(Relaxed);
    assert_eq!(world.fault(M2, Access::FETCH), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(read(&world), step.entry & !2, "R and X, for W was not put away");
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(read(&world), step.entry);
    world.tdp.age(range(M2, K4), &world.host).unwrap();
    assert_eq!(
        world.fault(M2, Access::WRITE),
        FaultOutcome::Fixed { size: PageSize::Size4K },
        "both at once"
    );
    assert_eq!(read(&world), step.entry);
    assert_eq!((world.host.asked.load(Relaxed), world.tdp.stats().pf_fast), (asked, 3));
}

#[test]
fn d3_a_tracked_page_is_zapped_split_and_protected_like_any() {
    let mut world = without_flags(PageSize::Size2M);
    world.touch_all();
    assert_eq!(world.sizes(), [0, 4, 0]);
    world.tdp.age(range(M2, 4 * M2), &world.host).unwrap();
    // A log starts, and one page is written.
    world.set_logging(true, false);
    world.access(M2 + 7 * K4, Access::WRITE).unwrap();
    assert_eq!(world.dirty(), [M2 + 7 * K4]);
    let stats = world.tdp.stats();
    assert_eq!((stats.pages_4k, stats.pages_2m), (512, 3));
    assert_eq!(world.access(M2 + 8 * K4, Access::READ).unwrap().address, 4 * G1 + 8 * K4);
    assert_eq!(world.zap(0, G1).leaves, 515);
    assert_eq!(world.sizes(), [0; 3]);
}
