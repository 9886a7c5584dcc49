//! Guests of 32-bit and of PAE paging: quadrants, and roots that are registers.

use std::collections::BTreeSet;

use ept::mmu::FaultOutcome;
use ept::{Access, Registers};
use memory_model::{Gpa, PageSize};

use crate::world::*;

const ROOT: u64 = 0x10_0000;
const PT: u64 = ROOT + K4;
const ALL: u64 = P | W | U | A | D;
/// What a PDE of 32-bit paging spans.
const M4: u64 = 4 << 20;
/// PDEs of three quadrants.
const PDES: [u64; 3] = [0, 300, 1023];

/// 32-bit paging: some PDEs to one table, whose entries map 0 to 4 MiB.
fn legacy32() -> World {
    let world = World::new(PageSize::Size4K);
    for pde in PDES {
        world.poke32(ROOT + pde * 4, (PT | ALL) as u32);
    }
    for n in 0..1024 {
        world.poke32(PT + n * 4, ((n * K4) | ALL) as u32);
    }
    loaded(world, &Registers { cr0: 1 << 31 | 1 | CR0_WP, cr3: ROOT, cr4: CR4_PSE, ..Registers::default() })
}

fn loaded(mut world: World, registers: &Registers) -> World {
    world.load(0, World::paging(registers).as_ref());
    world
}

#[test]
fn k2_a_32_bit_directory_has_four_quadrants_and_a_table_two() {
    let mut world = legacy32();
    for pde in PDES {
        for page in [1, 513] {
            assert_eq!(world.access(0, pde * M4 + page * K4, Access::WRITE), Ok(world.hpa(page * K4)));
        }
    }
    let quadrants = |level| -> BTreeSet<(u64, u8)> {
        let pages = world.shadow.shadow_pages().filter(|page| page.role.level == level);
        pages.filter_map(|page| Some((page.guest_table()?.raw(), page.role.quadrant))).collect()
    };
    assert_eq!(quadrants(2), BTreeSet::from([(ROOT, 0), (ROOT, 1), (ROOT, 3)]));
    assert_eq!(quadrants(1), BTreeSet::from([(PT, 0), (PT, 1)]));
    assert_eq!(world.shadow.stats().pages_4k, 2, "all PDEs share the shadows of their table");
    world.check();
    world.finish();
}

#[test]
fn h2_a_write_of_a_32_bit_entry_zaps_what_shadows_it_and_no_more() {
    let mut world = legacy32();
    let addresses = PDES.map(|pde| [1, 513].map(|page| pde * M4 + page * K4));
    let mapped = |world: &World| {
        addresses.map(|halves| halves.map(|gva| world.hardware(0, gva, Access::READ).is_some()))
    };
    let touch = |world: &mut World| {
        addresses.as_flattened().iter().for_each(|&gva| assert!(world.access(0, gva, Access::READ).is_ok()))
    };
    touch(&mut world);
    world.shadow.track_write(Gpa(ROOT + 300 * 4), 4, &world.host).unwrap();
    assert_eq!(mapped(&world), [[true, true], [false, false], [true, true]], "two entries of its quadrant");
    touch(&mut world);
    world.shadow.track_write(Gpa(PT + 513 * 4), 4, &world.host).unwrap();
    assert_eq!(mapped(&world), [[true, false]; 3], "one entry of one quadrant");
    // Two entries at once are none of a table of four bytes each.
    assert_eq!(world.shadow.shadow_stats().mmu_flooded, 0);
    touch(&mut world);
    world.shadow.track_write(Gpa(PT + 8), 8, &world.host).unwrap();
    assert_eq!(world.shadow.shadow_stats().mmu_flooded, 2, "both quadrants of the table");
    assert_eq!(mapped(&world), [[false, false]; 3]);
    world.finish();
}

#[test]
fn h1_both_quadrants_of_a_32_bit_table_catch_up() {
    let mut world = legacy32();
    let (low, high) = (2 * K4, 514 * K4);
    for gva in [low, high] {
        world.access(0, gva, Access::READ).unwrap();
    }
    // The table lies at 257 pages, which it maps.
    world.access(0, PT, Access::WRITE).unwrap();
    assert_eq!(world.shadow.shadow_stats().mmu_unsync, 2);
    world.poke32(PT + 2 * 4, (0x7000 | ALL) as u32);
    world.poke32(PT + 514 * 4, (0x8000 | ALL) as u32);
    world.sync_roots(0);
    assert_eq!(world.shadow.shadow_stats().mmu_unsync, 0);
    assert_eq!(world.access(0, low, Access::READ), Ok(world.hpa(0x7000)));
    assert_eq!(world.access(0, high, Access::READ), Ok(world.hpa(0x8000)));
    world.check();
    world.finish();
}

#[test]
fn l4_a_4m_page_is_two_2m_leaves_or_small_pieces() {
    for host in [PageSize::Size2M, PageSize::Size4K] {
        let world = World::new(host);
        world.poke32(ROOT + 4, ((2 * M4) | ALL | PS) as u32);
        let registers =
            Registers { cr0: 1 << 31 | 1 | CR0_WP, cr3: ROOT, cr4: CR4_PSE, ..Registers::default() };
        let mut world = loaded(world, &registers);
        for offset in [0x5000, M2 + 0x6000] {
            assert_eq!(world.fault(0, M4 + offset, Access::WRITE), FaultOutcome::Fixed { size: host });
            assert_eq!(world.hardware(0, M4 + offset, Access::WRITE), Some(world.hpa(2 * M4 + offset)));
        }
        world.check();
        world.finish();
    }
}

#[test]
fn k5_pdptes_are_registers_and_part_of_a_root() {
    let world = World::new(PageSize::Size4K);
    let [one, other] = [PT, PT + 2 * K4];
    for (pd, page) in [(one, 0x5000), (other, 0x6000)] {
        world.poke(pd, (pd + K4) | ALL);
        world.poke(pd + K4, page | ALL);
    }
    let registers = |pd: u64| Registers {
        cr0: 1 << 31 | 1 | CR0_WP,
        cr3: ROOT,
        cr4: CR4_PAE,
        pdptes: [pd | P, 0, 0, 0],
        ..Registers::default()
    };
    let mut world = loaded(world, &registers(one));
    assert_eq!(world.access(0, 0, Access::READ), Ok(world.hpa(0x5000)));
    // In memory they may change; only a load counts.
    world.emulate(ROOT, other | P);
    assert_eq!(world.hardware(0, 0, Access::READ), Some(world.hpa(0x5000)));
    world.load(0, World::paging(&registers(other)).as_ref());
    assert_eq!(world.access(0, 0, Access::READ), Ok(world.hpa(0x6000)));
    world.check();
    // And back: the same CR3 with the registers from before is a root that is still held.
    let tables = world.shadow.table_bytes();
    world.load(0, World::paging(&registers(one)).as_ref());
    assert_eq!(world.hardware(0, 0, Access::READ), Some(world.hpa(0x5000)));
    assert_eq!(world.shadow.table_bytes(), tables);
    world.check();
    world.finish();
}
