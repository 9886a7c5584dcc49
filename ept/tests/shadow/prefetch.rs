//! Leaves that no fault has asked for (rules H4, S3, S4), and who maps a page (rule H5).

use ept::Access;
use ept::mmu::{FaultOutcome, HostFrame};
use memory_model::{AddrRange, Gpa, PageSize};

use crate::world::*;

const ROOT: u64 = 0x10_0000;
/// The guest's level-1 table, of the first 2 MiB.
const PT: u64 = ROOT + 3 * K4;
const FIXED: FaultOutcome = FaultOutcome::Fixed { size: PageSize::Size4K };

/// A guest with one level-1 table, whose first sixteen pages lie from 4 MiB on; the host says which pages it has there.
fn guest(entry: impl Fn(u64) -> u64) -> World {
    let mut world = World::new(PageSize::Size4K);
    for (table, next) in [(0, 1), (1, 2), (2, 3)] {
        world.poke(ROOT + table * K4, (ROOT + next * K4) | P | W | U | A);
    }
    for page in 0..16 {
        world.poke(PT + page * 8, entry(page));
    }
    world.host.tells.set(true);
    world.load(0, World::paging(&long_mode(ROOT)).as_ref());
    world
}

fn used(page: u64) -> u64 {
    (2 * M2 + page * K4) | P | W | U | A | D
}

/// Which of the sixteen pages are mapped, one bit each.
fn mapped(world: &World) -> u16 {
    (0..16).map(|page| u16::from(world.granted(0, page * K4).is_some()) << page).sum()
}

fn leaf(world: &World, page: u64) -> u64 {
    let table = world.shadow.shadow_pages().find(|page| page.role.level == 1).unwrap();
    ept::PhysMemory::read_entry(&world.host, table.entry_address(page as u16)).unwrap()
}

#[test]
fn h4_a_fault_maps_the_rest_of_its_group_of_eight() {
    let mut world = guest(used);
    assert_eq!(world.fault(0, 11 * K4, Access::READ), FIXED);
    assert_eq!(mapped(&world), 0xff00);
    let stats = world.shadow.stats();
    assert_eq!((stats.pages_4k, stats.pf_fixed), (8, 1));
    world.check();
    for page in 8..16 {
        assert_eq!(world.hardware(0, page * K4, Access::WRITE), Some(world.hpa(2 * M2 + page * K4)));
    }
    world.finish();
}

#[test]
fn h4_only_what_was_used_and_is_there_comes_along() {
    let mut world = guest(|page| match page {
        1 => used(page) & !A,
        2 => used(page) & !P,
        3 => used(page) | 1 << 51,
        // No slot, and below a slot without a host page.
        4 => SIZE | 0xfff & used(page),
        _ => used(page),
    });
    world.host.pages.remove(&((HVA + 2 * M2) / K4 + 5));
    world.fault(0, 0, Access::WRITE);
    assert_eq!(mapped(&world), 0b1100_0001);
    world.host.tells.set(false);
    world.fault(0, 8 * K4, Access::READ);
    assert_eq!(mapped(&world), 0b1_1100_0001, "a host that does not tell");
    world.finish();
}

#[test]
fn h4_what_is_mapped_ahead_grants_no_more_than_a_fault_would() {
    let mut world = guest(|page| if page == 1 { used(page) & !D } else { used(page) });
    let read_only = (HVA + 2 * M2) / K4 + 2;
    let frame = world.host.pages[&read_only];
    world.host.pages.insert(read_only, HostFrame { writable: false, ..frame });
    // Page 3 is the level-1 table itself, page 4 the one above.
    world.poke(PT + 3 * 8, PT | P | W | U | A | D);
    world.poke(PT + 4 * 8, (ROOT + 2 * K4) | P | W | U | A | D);
    world.fault(0, 0, Access::READ);
    let writable = |page: u64| world.granted(0, page * K4).map(|rights| rights.contains(ept::Rights::WRITE));
    assert_eq!([0, 1, 5].map(writable), [Some(true), Some(false), Some(true)]);
    assert_eq!(writable(2), None, "the host has it read-only, and the guest may write");
    assert_eq!([3, 4].map(writable), [Some(false); 2], "a table goes unsync by a write alone");
    assert_eq!(world.shadow.shadow_stats().mmu_unsync, 0);
    world.check();
    world.finish();
}

#[test]
fn h4_no_write_escapes_a_log() {
    let mut world = guest(|page| if page == 1 { used(page) & !(W | D) } else { used(page) });
    world.slots.slots[0].log_dirty = true;
    world.fault(0, 0, Access::WRITE);
    assert_eq!(mapped(&world), 0b11, "the pages that the guest may not write come along");
    assert_eq!(world.slots.dirty.borrow().len(), 1);
    world.finish();
}

#[test]
fn h4_n2_nothing_of_a_range_under_invalidation_comes_along() {
    let mut world = guest(used);
    let range = AddrRange::new(Gpa(2 * M2 + 3 * K4), u128::from(2 * K4)).unwrap();
    world.shadow.invalidate_begin(range, &world.host).unwrap();
    world.fault(0, 0, Access::READ);
    assert_eq!(mapped(&world), 0b1110_0111);
    world.shadow.invalidate_end();
    world.finish();
}

#[test]
fn h4_pieces_of_a_large_page_come_along_too() {
    let mut world = guest(used);
    world.poke(ROOT + 2 * K4, (2 * M2) | PS | P | W | U | A | D);
    world.fault(0, 3 * K4, Access::WRITE);
    assert_eq!(mapped(&world), 0xff);
    world.check();
    world.finish();
}

#[test]
fn s3_s4_a_leaf_that_was_not_asked_for_has_d_and_not_a() {
    let mut world = guest(used);
    world.fault(0, 0, Access::WRITE);
    assert_eq!([0, 1].map(|page| leaf(&world, page) & 0xfff), [0xe67, 0xe47]);
    world.hardware(0, K4, Access::READ);
    assert_eq!(leaf(&world, 1) & 0xfff, 0xe67);
    world.finish();
}

#[test]
fn h5_each_page_knows_the_leaves_that_map_it() {
    let mut world = guest(|page| used(page & 7));
    world.fault(0, 0, Access::WRITE);
    world.fault(0, 8 * K4, Access::WRITE);
    assert_eq!(mapped(&world), 0xffff);
    world.zap(2 * M2 + 3 * K4, K4);
    assert_eq!(mapped(&world), !0x0808, "both leaves of the page, and no other");
    world.finish();
}
