//! Rules N1 to N3, Z2, Z3: what goes, what stays, and what must not come back. And a limit on tables.

use ept::mmu::{FaultOutcome, PageFault, TdpOptions, Zapped};
use ept::{Access, EptCaps, Error, Levels};
use memory_model::{Gpa, PageSize};

use super::host::{G1, K4, M2, World, ept_format, flushed, npt, range, world, world_with};

#[test]
fn n1_an_invalidation_takes_leaves_and_leaves_tables() {
    let mut world = world(PageSize::Size4K);
    world.touch_all();
    let before = world.tdp.table_bytes();
    let gone = world.tdp.invalidate_begin(range(M2 + K4, 2 * M2), &world.host).unwrap();
    assert_eq!((gone, world.sizes(), world.tdp.table_bytes()), (flushed(1024, 0), [1024, 0, 0], before));
    world.tdp.invalidate_end();
    assert_eq!(world.tdp.stats().zapped, 1024);
    // A slot that goes takes the empty ones along, also at its edges.
    assert_eq!(world.zap(M2, 2 * M2), flushed(1, 2));
}

#[test]
fn n2_nothing_of_what_is_being_invalidated_is_mapped() {
    let mut world = world(PageSize::Size2M);
    world.tdp.invalidate_begin(range(2 * M2 + K4, K4), &world.host).unwrap();
    world.tdp.invalidate_begin(range(4 * M2, K4), &world.host).unwrap();
    assert_eq!(world.fault(2 * M2, Access::WRITE), FaultOutcome::Retry, "its huge page holds the range");
    assert_eq!(world.fault(3 * M2, Access::WRITE), FaultOutcome::Retry, "one merged interval");
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size2M });
    world.tdp.invalidate_end();
    assert_eq!(world.fault(3 * M2, Access::WRITE), FaultOutcome::Retry, "one is still under way");
    world.tdp.invalidate_end();
    assert_eq!(world.fault(3 * M2, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size2M });
    assert_eq!(world.sizes(), [0, 2, 0]);
}

#[test]
fn n3_a_frame_looked_up_before_an_invalidation_is_not_installed_after_it() {
    let mut world = world(PageSize::Size4K);
    let fault = PageFault::of_tdp(Gpa(M2), Access::WRITE);
    let look = |world: &World| fault.resolve(world.tdp.invalidations().seq(), &world.slots, &world.host);
    assert_eq!(world.tdp.fast(&fault, &world.slots, &world.host), Ok(None));
    let old = look(&world);
    world.tdp.invalidate_begin(range(M2, K4), &world.host).unwrap();
    let between = look(&world);
    world.host.mapped[0].hpa = 8 * G1;
    world.tdp.invalidate_end();
    for stale in [old, between] {
        assert_eq!(world.tdp.map(&fault, stale, &world.slots, &world.host), Ok(FaultOutcome::Retry));
    }
    assert_eq!(world.sizes(), [0; 3]);
    let fixed = world.tdp.map(&fault, look(&world), &world.slots, &world.host);
    assert_eq!(fixed, Ok(FaultOutcome::Fixed { size: PageSize::Size4K }));
    assert_eq!(world.leaf(M2).frame, 8 * G1);
}

#[test]
fn z2_z3_a_slot_takes_its_tables_along_and_no_neighbours() {
    let mut world = world(PageSize::Size4K);
    world.touch_all();
    assert_eq!(world.zap(2 * M2, 2 * M2), flushed(1024, 2));
    assert_eq!(world.sizes(), [1024, 0, 0]);
    assert_eq!(world.zap(2 * M2, 2 * M2), Zapped::default());
    assert_eq!(world.tdp.zap_all(&world.host), Ok(flushed(1024, 4)));
    assert_eq!((world.sizes(), world.tdp.table_bytes()), ([0; 3], K4));
    let stats = world.tdp.stats();
    assert_eq!((stats.zapped, stats.remote_tlb_flush_requests), (2048, 2));
}

#[test]
fn k5_a_limit_on_tables_is_kept_and_reclaim_lets_faults_go_on() {
    for limit in [0, 4, 5, 6, 9] {
        let mut world =
            world_with(PageSize::Size4K, TdpOptions { max_tables: Some(limit), ..TdpOptions::default() });
        world.slots.slots[0].bytes = 512 * M2;
        world.host.mapped[0].bytes = 512 * M2;
        let most = limit.max(4);
        for round in 0..600 {
            let gpa = M2 + (round * 37 % 512) * M2 + round % 512 * K4;
            let mut refused = 0;
            while let Err(error) = world.tdp.fault(Gpa(gpa), Access::WRITE, &world.slots, &world.host) {
                assert_eq!(error, Error::OutOfTables);
                assert!(world.tdp.reclaim(&world.host).unwrap().tables > 0);
                refused += 1;
                assert_eq!(refused, 1, "once is enough for a fault");
            }
            assert!(world.tdp.table_bytes() <= most * K4);
            assert_eq!(world.leaf(gpa).frame, 4 * G1 + (gpa - M2));
        }
        assert!(world.sizes()[0] > 0);
    }
}

#[test]
fn reclaim_frees_empty_tables_before_any_page() {
    let mut world = world_with(PageSize::Size4K, TdpOptions { max_tables: Some(7), ..TdpOptions::default() });
    for gpa in [M2, 2 * M2, 3 * M2, 4 * M2] {
        world.access(gpa, Access::WRITE).unwrap();
    }
    world.tdp.invalidate_begin(range(M2, 3 * M2), &world.host).unwrap();
    world.tdp.invalidate_end();
    world.slots.slots[0].bytes = G1;
    world.host.mapped[0].bytes = G1;
    let refused = world.tdp.fault(Gpa(5 * M2), Access::READ, &world.slots, &world.host);
    assert_eq!(refused, Err(Error::OutOfTables));
    let gone = world.tdp.reclaim(&world.host).unwrap();
    assert_eq!((gone.leaves, gone.tables), (0, 3));
    assert_eq!(world.fault(5 * M2, Access::READ), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(world.sizes(), [2, 0, 0]);
}

#[test]
fn reclaim_works_for_huge_pages_and_five_levels() {
    let World { mut host, mut slots, .. } = world(PageSize::Size2M);
    slots.slots[0].bytes = 1 << 41;
    host.mapped[0].bytes = 1 << 41;
    let options = TdpOptions { max_tables: Some(5), ..TdpOptions::default() };
    for format in [npt(Levels::Five), ept_format(true, EptCaps::all() - EptCaps::PAGE_1G)] {
        let mut world = World::with(format, options, slots.slots[0], host.mapped[0]);
        for number in 0..40 {
            let gpa = M2 + number * 32 * G1;
            while world.tdp.fault(Gpa(gpa), Access::WRITE, &world.slots, &world.host).is_err() {
                world.tdp.reclaim(&world.host).unwrap();
            }
            assert_eq!(world.leaf(gpa).size, PageSize::Size2M);
        }
    }
}
