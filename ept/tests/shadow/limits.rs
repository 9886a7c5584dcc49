//! A limit on tables, read-only slots, and logs that end.

use ept::Access;
use ept::mmu::FaultOutcome;
use memory_model::{AddrRange, Gpa, PageSize};

use crate::world::*;

const ROOT: u64 = 0x10_0000;
const PD: u64 = ROOT + 2 * K4;

/// A guest of four levels, with an entry for each of `count` tables of level 1, of which each maps the page at 0x5000.
fn spread(count: u64, max_tables: usize) -> World {
    let mut world = World::limited(PageSize::Size4K, max_tables);
    for level in 0..2 {
        world.poke(ROOT + level * K4, (ROOT + (level + 1) * K4) | P | W | U);
    }
    for n in 0..count {
        let table = PD + (n + 1) * K4;
        world.poke(PD + n * 8, table | P | W | U);
        world.poke(table, 0x5000 | P | W | U);
    }
    world.load(0, World::paging(&long_mode(ROOT)).as_ref());
    world
}

#[test]
fn k5_the_oldest_tables_give_way_and_roots_stay() {
    const LIMIT: usize = 12;
    let mut world = spread(40, LIMIT);
    let root = world.contexts[0].paging().root;
    for n in (0..40).chain(0..40) {
        assert_eq!(world.access(0, n * M2 + 8, Access::WRITE), Ok(world.hpa(0x5008)));
        // The root of a processor before it switched paging on is one more that is held.
        assert!(world.shadow.shadow_pages().count() <= LIMIT + 1);
        world.check();
    }
    assert!(world.shadow.shadow_stats().mmu_recycled > 0);
    assert_eq!(world.contexts[0].paging().root, root);
    assert!(world.hardware(0, 39 * M2, Access::READ).is_some(), "the latest is there still");
    assert!(world.hardware(0, M2, Access::READ).is_none(), "an older one is not");
    world.finish();
}

#[test]
fn writes_to_a_read_only_slot_are_mmio_and_its_pages_are_read() {
    let mut world = spread(1, 100);
    world.slots.slots[0].bytes = 0x5000;
    let all = world.slots.slots[0];
    let hva = memory_model::Hva(HVA + 0x5000);
    world.slots.slots.push(ept::mmu::Memslot { base: Gpa(0x5000), hva, bytes: K4, readonly: true, ..all });
    let hva = memory_model::Hva(HVA + 0x6000);
    world.slots.slots.push(ept::mmu::Memslot { base: Gpa(0x6000), hva, bytes: SIZE - 0x6000, ..all });
    let refused = FaultOutcome::MmioReadonlyWrite { gpa: Gpa(0x5008) };
    assert_eq!(world.fault(0, 8, Access::WRITE), refused);
    assert_eq!(world.access(0, 8, Access::READ), Ok(world.hpa(0x5008)));
    assert_eq!(world.access(0, 8, Access::WRITE), Err(refused));
    world.check();
    world.finish();
}

#[test]
fn d2_when_a_log_ends_pages_are_large_again() {
    let mut world = World::new(PageSize::Size2M);
    for level in 0..2 {
        world.poke(ROOT + level * K4, (ROOT + (level + 1) * K4) | P | W | U);
    }
    world.poke(PD + 8, (2 * M2) | P | W | U | PS);
    world.load(0, World::paging(&long_mode(ROOT)).as_ref());
    let page = AddrRange::new(Gpa(2 * M2), M2.into()).unwrap();
    let large = FaultOutcome::Fixed { size: PageSize::Size2M };
    assert_eq!(world.fault(0, M2, Access::WRITE), large);

    world.slots.slots[0].log_dirty = true;
    world.shadow.set_logging(page, true, &world.host).unwrap();
    assert_eq!(world.hardware(0, M2, Access::READ), None, "rule D1: a large leaf goes");
    assert_eq!(world.fault(0, M2 + 0x3000, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
    // Besides the guest's tables, whose flags were set.
    let logged = |gpa: &&Gpa| page.contains(**gpa);
    assert_eq!(world.slots.dirty.borrow().iter().filter(logged).collect::<Vec<_>>(), [&Gpa(2 * M2 + 0x3000)]);
    world.check();

    world.slots.slots[0].log_dirty = false;
    assert_eq!(world.shadow.set_logging(page, false, &world.host).unwrap().leaves, 1);
    assert_eq!(world.hardware(0, M2 + 0x3000, Access::READ), None, "its pieces go as well");
    assert_eq!(world.fault(0, M2 + 0x3000, Access::WRITE), large);
    world.check();
    world.finish();
}
