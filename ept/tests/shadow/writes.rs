//! Guests that write their tables: what is emulated, what goes unsync, and what catches up.

use ept::Access;
use ept::mmu::FaultOutcome;
use memory_model::{Gpa, PageSize};

use crate::faults::four_level;
use crate::world::*;

const ROOT: u64 = 0x10_0000;
const PDPT: u64 = ROOT + K4;
const PD: u64 = ROOT + 2 * K4;
const PT: u64 = ROOT + 3 * K4;
const ALL: u64 = P | W | U | A | D;

/// Pages 5 and 6 are mapped, and the table that maps them was written behind the shadow's back: it maps 7 and 8.
fn stale() -> World {
    let mut world = four_level();
    for page in [5, 6] {
        world.access(0, page * K4, Access::READ).unwrap();
    }
    for page in [5, 6] {
        world.store(0, PT + page * 8, Access::WRITE, ((page + 2) * K4) | ALL).unwrap();
    }
    assert_eq!(seen(&world, 0), [Some(5), Some(6)], "no flush yet");
    world
}

/// The guest's pages that a processor sees as pages 5 and 6.
fn seen(world: &World, context: usize) -> [Option<u64>; 2] {
    [5, 6].map(|page| {
        let hpa = world.hardware(context, page * K4, Access::READ)?;
        (0..512).find(|&gfn| world.hpa(gfn * K4) == hpa)
    })
}

#[test]
fn h1_invlpg_of_one_page_leaves_the_other_stale() {
    let mut world = stale();
    world.invlpg(0, 5 * K4);
    assert_eq!(seen(&world, 0), [None, Some(6)]);
    assert_eq!(world.access(0, 5 * K4, Access::READ), Ok(world.hpa(7 * K4)));
    assert_eq!(world.shadow.shadow_stats().mmu_unsync, 1);
    world.check();
    world.finish();
}

#[test]
fn h1_a_flush_of_more_than_one_page_brings_all_up_to_date() {
    let flushes: [fn(&mut World); 2] =
        [|world| world.sync_roots(0), |world| world.load(0, World::paging(&long_mode(ROOT)).as_ref())];
    for flush in flushes {
        let mut world = stale();
        flush(&mut world);
        assert_eq!(seen(&world, 0), [None, None]);
        assert_eq!(world.shadow.shadow_stats().mmu_unsync, 0);
        assert_eq!(world.hardware(0, PT, Access::WRITE), None, "the next write is seen again");
        world.check();
        world.finish();
    }
}

#[test]
fn h1_marks_reach_every_parent() {
    // Another root with its own PDPT and PD, above the same table.
    let other = 0x30_0000;
    for by_invlpg in [false, true] {
        let mut world = four_level();
        for (at, to) in [(other, other + K4), (other + K4, other + 2 * K4), (other + 2 * K4, PT)] {
            world.poke(at, to | ALL);
        }
        world.add_context();
        world.load(1, World::paging(&long_mode(other)).as_ref());
        for context in [0, 1] {
            for page in [5, 6] {
                world.access(context, page * K4, Access::READ).unwrap();
            }
        }
        for page in [5, 6] {
            world.store(0, PT + page * 8, Access::WRITE, ((page + 2) * K4) | ALL).unwrap();
        }
        assert_eq!(seen(&world, 1), [Some(5), Some(6)]);
        if by_invlpg {
            world.invlpg(1, 5 * K4);
            assert_eq!(seen(&world, 1), [None, Some(6)]);
        } else {
            world.load(1, World::paging(&long_mode(other)).as_ref());
            assert_eq!(seen(&world, 1), [None, None]);
        }
        world.check();
        world.finish();
    }
}

#[test]
fn h1_a_root_that_comes_back_has_caught_up() {
    let other = 0x30_0000;
    let mut world = stale();
    world.poke(other, PDPT | ALL);
    world.add_context();
    // An empty root first, so that nothing of this load brings the table up to date.
    world.load(1, World::paging(&long_mode(0x40_0000)).as_ref());
    assert_eq!(seen(&world, 0), [Some(5), Some(6)]);
    // The first fault links the PDPT that has the stale table below it.
    world.load(1, World::paging(&long_mode(other)).as_ref());
    assert_eq!(world.access(1, 5 * K4, Access::READ), Ok(world.hpa(7 * K4)));
    assert_eq!(seen(&world, 1), [Some(7), None]);
    world.check();
    world.finish();
}

#[test]
fn h1_a_table_that_is_unsync_when_it_is_linked_marks_its_new_parent() {
    let other = 0x30_0000;
    let mut world = stale();
    for (at, to) in [(other, other + K4), (other + K4, other + 2 * K4), (other + 2 * K4, PT)] {
        world.poke(at, to | ALL);
    }
    world.add_context();
    world.load(1, World::paging(&long_mode(other)).as_ref());
    assert_eq!(world.access(1, 6 * K4, Access::READ), Ok(world.hpa(8 * K4)), "as the guest's table is now");
    assert_eq!(seen(&world, 1), [None, Some(8)], "nothing that is older than its link");
    assert_eq!(world.shadow.shadow_stats().mmu_unsync, 1, "it may still be written");
    world.store(0, PT + 6 * 8, Access::WRITE, (9 * K4) | ALL).unwrap();
    world.load(1, World::paging(&long_mode(other)).as_ref());
    assert_eq!(world.access(1, 6 * K4, Access::READ), Ok(world.hpa(9 * K4)));
    world.check();
    world.finish();
}

#[test]
fn h1_a_recursive_table_sees_itself_and_catches_up() {
    let mut world = four_level();
    world.poke(ROOT + 511 * 8, ROOT | ALL);
    let (tables, tops) = (0xffff_ff80_0000_0000, 0xffff_ffff_ffff_f000);
    assert_eq!(world.access(0, tops, Access::READ), Ok(world.hpa(ROOT)));
    assert_eq!(world.access(0, tables, Access::READ), Ok(world.hpa(PT)));
    world.access(0, 5 * K4, Access::READ).unwrap();
    // A page table goes unsync; the others stay tracked, whatever level they are used at.
    world.store(0, tables + 5 * 8, Access::WRITE, (7 * K4) | ALL).unwrap();
    assert_eq!(seen(&world, 0)[0], Some(5));
    world.invlpg(0, 5 * K4);
    assert_eq!(world.access(0, 5 * K4, Access::READ), Ok(world.hpa(7 * K4)));
    world.check();
    for (gva, table) in [(tops, ROOT), (0xffff_ffff_ffe0_0000, PDPT), (0xffff_ffff_c000_0000, PD)] {
        let refused = FaultOutcome::WriteProtected { gpa: Gpa(table) };
        assert_eq!(world.access(0, gva, Access::WRITE), Err(refused));
    }
    // Without its own entry the root maps nothing of itself.
    world.store(0, tops + 511 * 8, Access::WRITE, 0).unwrap();
    assert_eq!(world.hardware(0, tables, Access::READ), None);
    world.check();
    world.finish();
}

#[test]
fn h2_writes_that_are_none_of_one_entry_zap_the_page() {
    let cases = [
        ((0, 8), false),
        ((0, 4), false),
        ((4, 4), false),
        ((2, 4), false),
        ((0, 1), false),
        ((8, 1), false),
        ((1, 1), true),
        ((0, 2), true),
        ((0, 3), true),
        ((4, 8), true),
        ((6, 4), true),
    ];
    for ((offset, bytes), zapped) in cases {
        for table in [PT, PD, ROOT] {
            let mut world = four_level();
            world.access(0, 5 * K4, Access::READ).unwrap();
            world.shadow.track_write(Gpa(table + 0x100 + offset), bytes, &world.host).unwrap();
            let stats = world.shadow.shadow_stats();
            assert_eq!(stats.mmu_flooded, u64::from(zapped), "{offset}, {bytes}");
            assert_eq!(world.hardware(0, 5 * K4, Access::READ).is_none(), zapped, "{offset}, {bytes}");
            world.access(0, 5 * K4, Access::READ).unwrap();
            world.check();
            world.finish();
        }
    }
}

#[test]
fn h2_a_fault_through_a_table_forgets_the_writes_before_it() {
    let mut world = four_level();
    let write = |world: &mut World, nth: u64| world.emulate(PD + 8 * nth, 0);
    for page in 5..9 {
        world.access(0, page * K4, Access::READ).unwrap();
        write(&mut world, 1);
        write(&mut world, 2);
    }
    assert_eq!(world.shadow.shadow_stats().mmu_flooded, 0);
    write(&mut world, 3);
    assert_eq!(world.shadow.shadow_stats().mmu_flooded, 1);
    // A page table is never flooded: it would have gone unsync.
    let mut world = four_level();
    world.access(0, 5 * K4, Access::READ).unwrap();
    for _ in 0..5 {
        world.emulate(PT, ALL);
    }
    assert_eq!(world.shadow.shadow_stats().mmu_flooded, 0);
    world.finish();
}

#[test]
fn a_leaf_of_a_global_page_is_not_global() {
    const G: u64 = 1 << 8;
    let mut world = four_level();
    world.poke(PT + 5 * 8, (5 * K4) | ALL | G);
    world.access(0, 5 * K4, Access::READ).unwrap();
    let paging = *world.contexts[0].paging();
    let walk = ept::walk(&world.host, &paging, 5 * K4, Access::READ, ept::Flags::Keep);
    assert_eq!(walk.outcome.unwrap().entry & G, 0, "another root may map the address otherwise");
    // Nor does the flag keep it stale.
    world.store(0, PT + 5 * 8, Access::WRITE, (7 * K4) | ALL | G).unwrap();
    world.invlpg(0, 5 * K4);
    assert_eq!(world.access(0, 5 * K4, Access::READ), Ok(world.hpa(7 * K4)));
    world.check();
    world.finish();
}

#[test]
fn d3_a_page_is_young_once() {
    let mut world = four_level();
    let ranges = [5, 6].map(|page| memory_model::AddrRange::page_of(Gpa(page * K4), PageSize::Size4K));
    for page in [5, 6] {
        world.access(0, page * K4, Access::READ).unwrap();
    }
    let World { shadow, host, .. } = &mut world;
    let mut ages = |range| {
        [
            shadow.test_age(range, host).unwrap(),
            shadow.age(range, host).unwrap(),
            shadow.test_age(range, host).unwrap(),
            shadow.age(range, host).unwrap(),
        ]
    };
    assert_eq!(ages(ranges[0]), [true, true, false, false]);
    world.access(0, 5 * K4, Access::READ).unwrap();
    assert!(world.shadow.age(ranges[0], &world.host).unwrap());
    assert!(world.shadow.test_age(ranges[1], &world.host).unwrap(), "the other one is as it was");
    world.finish();
}
