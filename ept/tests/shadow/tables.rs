//! Roots, limits, and what is taken back.

use ept::mmu::FaultOutcome;
use ept::{Access, PageFaultCode};
use memory_model::{AddrRange, Gpa, PageSize};

use crate::faults::four_level;
use crate::world::*;

const ROOT: u64 = 0x10_0000;

#[test]
fn k5_a_switch_keeps_the_shadows_and_three_roots_are_held() {
    let mut world = four_level();
    world.access(0, 0x5000, Access::READ).unwrap();
    let other = 0x20_0000;
    for n in 0..5 {
        world.poke(other + n * K4, (ROOT + K4) | P | W | U);
        world.load(0, World::paging(&long_mode(other + n * K4)).as_ref());
        world.check();
    }
    assert_eq!(world.shadow.shadow_pages().filter(|page| page.root_count > 0).count(), 4);
    world.load(0, World::paging(&long_mode(ROOT)).as_ref());
    assert_eq!(world.hardware(0, 0x5000, Access::READ), Some(world.hpa(0x5000)), "it is still there");
    world.finish();
}

#[test]
fn h2_a_third_write_to_an_upper_table_zaps_its_shadow() {
    let mut world = four_level();
    world.access(0, 0x5000, Access::READ).unwrap();
    for n in 1..=3 {
        assert_eq!(world.shadow.shadow_stats().mmu_flooded, 0);
        world.emulate(ROOT + 2 * K4 + 8 * n, 0);
    }
    assert_eq!(world.shadow.shadow_stats().mmu_flooded, 1);
    assert_eq!(world.hardware(0, 0x5000, Access::READ), None);
    world.access(0, 0x5000, Access::READ).unwrap();
    world.check();
    world.finish();
}

#[test]
fn l4_a_large_guest_page_over_large_and_small_host_pages() {
    for (host, expected) in [(PageSize::Size2M, PageSize::Size2M), (PageSize::Size4K, PageSize::Size4K)] {
        let mut world = World::new(host);
        for level in 0..2 {
            world.poke(ROOT + level * K4, (ROOT + (level + 1) * K4) | P | W | U);
        }
        world.poke(ROOT + 2 * K4 + 8, (2 * M2) | P | W | U | PS);
        world.poke(ROOT + 2 * K4, P | W | U | PS);
        world.load(0, World::paging(&long_mode(ROOT)).as_ref());
        assert_eq!(world.fault(0, M2 + 0x5000, Access::WRITE), FaultOutcome::Fixed { size: expected });
        // Rule L2: the tables lie in this one.
        assert_eq!(world.fault(0, 0x5000, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
        world.check();
        world.finish();
    }
}

#[test]
fn z3_a_slot_that_goes_takes_its_leaves_and_tables_with_it() {
    let mut world = four_level();
    world.access(0, 0x5000, Access::READ).unwrap();
    let slots = std::mem::take(&mut world.slots.slots);
    world.zap(0, SIZE);
    assert_eq!(world.shadow.stats().pages_4k, 0);
    assert_eq!(world.fault(0, 0x5000, Access::READ), FaultOutcome::Guest(PageFaultCode::empty()));
    world.slots.slots = slots;
    world.access(0, 0x5000, Access::READ).unwrap();
    world.check();
    world.finish();
}

#[test]
fn n2_nothing_of_a_range_under_invalidation_is_mapped() {
    let mut world = four_level();
    let range = AddrRange::new(Gpa(0x5000), K4.into()).unwrap();
    world.shadow.invalidate_begin(range, &world.host).unwrap();
    assert_eq!(world.fault(0, 0x5000, Access::READ), FaultOutcome::Retry);
    world.shadow.invalidate_end();
    world.access(0, 0x5000, Access::READ).unwrap();
    world.finish();
}

#[test]
fn d1_a_logged_page_is_writable_after_its_write_is_logged() {
    let mut world = four_level();
    world.slots.slots[0].log_dirty = true;
    world.access(0, 0x5000, Access::WRITE).unwrap();
    assert!(world.slots.dirty.borrow().contains(&Gpa(0x5000)));
    let range = AddrRange::new(Gpa(0), SIZE.into()).unwrap();
    assert_eq!(world.shadow.write_protect(range, &world.host).unwrap().leaves, 1);
    assert_eq!(world.hardware(0, 0x5000, Access::WRITE), None);
    assert_eq!(world.hardware(0, 0x5000, Access::READ), Some(world.hpa(0x5000)));
    world.access(0, 0x5000, Access::WRITE).unwrap();
    world.finish();
}
