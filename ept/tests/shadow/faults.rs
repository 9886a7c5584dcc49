//! Faults: the guest's own, and those that the shadow takes care of.

use ept::mmu::FaultOutcome;
use ept::{Access, PageFaultCode, Rights};
use memory_model::PageSize;

use crate::world::*;

const ROOT: u64 = 0x10_0000;
const ALL: u64 = P | W | U;

/// PML4, PDPT, PD and PT in a row; GVA 0 to 2 MiB.
pub fn four_level() -> World {
    let mut world = World::new(PageSize::Size4K);
    for level in 0..3 {
        world.poke(ROOT + level * K4, (ROOT + (level + 1) * K4) | ALL);
    }
    for n in 0..512 {
        world.poke(ROOT + 3 * K4 + n * 8, (n * K4) | ALL);
    }
    world.load(0, World::paging(&long_mode(ROOT)).as_ref());
    world
}

#[test]
fn a_first_touch_maps_the_page_and_sets_the_guests_flags() {
    let mut world = four_level();
    assert_eq!(world.fault(0, 0x5123, Access::READ), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(world.hardware(0, 0x5123, Access::READ), Some(world.hpa(0x5123)));
    assert_eq!(world.peek(ROOT + 3 * K4 + 5 * 8), 0x5000 | ALL | A);
    // The first write is to set D.
    assert_eq!(world.hardware(0, 0x5123, Access::WRITE), None);
    assert_eq!(world.access(0, 0x5123, Access::WRITE), Ok(world.hpa(0x5123)));
    assert_eq!(world.peek(ROOT + 3 * K4 + 5 * 8), 0x5000 | ALL | A | D);
    assert_eq!(world.fault(0, 0x5123, Access::WRITE), FaultOutcome::Spurious);
    world.check();
    assert_eq!(world.shadow.table_bytes(), 5 * K4, "one of them is the root that had paging off");
    world.finish();
}

#[test]
fn the_guests_own_faults_are_the_guests() {
    let mut world = four_level();
    world.poke(ROOT + 3 * K4 + 8, 0);
    world.poke(ROOT + 3 * K4 + 16, 0x2000 | P);
    assert_eq!(world.fault(0, 0x1000, Access::READ), FaultOutcome::Guest(PageFaultCode::empty()));
    let code = PageFaultCode::PRESENT | PageFaultCode::WRITE | PageFaultCode::USER;
    assert_eq!(world.fault(0, 0x2000, Access::WRITE.by_user()), FaultOutcome::Guest(code));
    assert!(world.try_fault(0, 1 << 47, Access::READ).is_err());
    world.finish();
}

#[test]
fn h1_a_level_1_table_goes_unsync_and_catches_up_at_invlpg_and_cr3() {
    for by_cr3 in [false, true] {
        let mut world = four_level();
        world.access(0, 0x5000, Access::READ).unwrap();
        // The guest maps its page table for itself, and writes it.
        let pt = ROOT + 3 * K4;
        assert_eq!(world.access(0, pt + 5 * 8, Access::WRITE), Ok(world.hpa(pt + 5 * 8)));
        assert_eq!(world.shadow.shadow_stats().mmu_unsync, 1);
        world.store(0, pt + 5 * 8, Access::WRITE, 0x7000 | ALL | A | D).unwrap();
        assert_eq!(world.hardware(0, 0x5000, Access::READ), Some(world.hpa(0x5000)), "no flush yet");
        if by_cr3 {
            world.load(0, World::paging(&long_mode(ROOT)).as_ref());
            assert_eq!(world.shadow.shadow_stats().mmu_unsync, 0);
            assert_eq!(world.hardware(0, pt, Access::WRITE), None);
        } else {
            world.invlpg(0, 0x5000);
            assert_eq!(world.shadow.shadow_stats().mmu_unsync, 1);
        }
        assert_eq!(world.access(0, 0x5000, Access::READ), Ok(world.hpa(0x7000)));
        world.check();
        world.finish();
    }
}

#[test]
fn h2_a_write_to_an_upper_table_is_emulated_and_zaps_the_entry() {
    let mut world = four_level();
    world.access(0, 0x5000, Access::READ).unwrap();
    let pd = ROOT + 2 * K4;
    assert_eq!(
        world.access(0, pd, Access::WRITE),
        Err(FaultOutcome::WriteProtected { gpa: memory_model::Gpa(pd) })
    );
    world.store(0, pd, Access::WRITE, 0).unwrap();
    assert_eq!(world.hardware(0, 0x5000, Access::READ), None);
    assert_eq!(world.fault(0, 0x5000, Access::READ), FaultOutcome::Guest(PageFaultCode::empty()));
    world.check();
    world.finish();
}

#[test]
fn h3_without_wp_a_read_only_user_page_flips() {
    for (smep, supervisor) in [(0, Rights::RWX), (CR4_SMEP, Rights::READ | Rights::WRITE)] {
        let mut world = four_level();
        world.poke(ROOT + 3 * K4 + 8, 0x1000 | P | U);
        let mut registers = long_mode(ROOT);
        registers.cr0 &= !CR0_WP;
        registers.cr4 |= smep;
        world.load(0, World::paging(&registers).as_ref());
        world.access(0, 0x1000, Access::READ.by_user()).unwrap();
        assert_eq!(world.granted(0, 0x1000), Some(Rights::READ | Rights::EXEC | Rights::USER));
        world.access(0, 0x1000, Access::WRITE).unwrap();
        assert_eq!(world.granted(0, 0x1000), Some(supervisor));
        world.check();
        world.access(0, 0x1000, Access::READ.by_user()).unwrap();
        assert_eq!(world.granted(0, 0x1000), Some(Rights::READ | Rights::EXEC | Rights::USER));
        world.check();
        world.finish();
    }
}

#[test]
fn a_table_linked_once_more_is_a_fault_fixed_though_its_leaf_is_there() {
    let mut world = four_level();
    world.poke(ROOT + 2 * K4 + 8, (ROOT + 3 * K4) | ALL);
    world.access(0, 0x5000, Access::READ).unwrap();
    let fixed = FaultOutcome::Fixed { size: PageSize::Size4K };
    assert_eq!(world.fault(0, M2 + 0x5000, Access::READ), fixed);
    assert_eq!(world.shadow.stats().pages_4k, 1);
    world.check();
    world.finish();
}
