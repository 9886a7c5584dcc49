//! How large a leaf is, and what makes it smaller; tables that lie in a read-only slot or belong to several processes.

use ept::Access;
use ept::mmu::{FaultOutcome, HostFrame, Memslot};
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};

use crate::world::*;

const ROOT: u64 = 0x10_0000;
const ALL: u64 = P | W | U | A | D;
const G1: u64 = 1 << 30;

/// A guest that maps its memory where it lies, by pages of one size, over host pages of one size.
fn identity(guest: PageSize, host: PageSize) -> World {
    let mut world = World::new(host);
    world.poke(ROOT, (ROOT + K4) | ALL);
    match guest {
        PageSize::Size1G => world.poke(ROOT + K4, ALL | PS),
        _ => world.poke(ROOT + K4, (ROOT + 2 * K4) | ALL),
    }
    for n in 0..SIZE / M2 {
        match guest {
            PageSize::Size2M => world.poke(ROOT + 2 * K4 + n * 8, (n * M2) | ALL | PS),
            _ => world.poke(ROOT + 2 * K4 + n * 8, (ROOT + (3 + n) * K4) | ALL),
        }
        for page in 0..512 {
            world.poke(ROOT + (3 + n) * K4 + page * 8, (n * M2 + page * K4) | ALL);
        }
    }
    world.load(0, World::paging(&long_mode(ROOT)).as_ref());
    world
}

fn fixed(size: PageSize) -> FaultOutcome {
    FaultOutcome::Fixed { size }
}

/// All of the guest's memory.
fn everything() -> AddrRange<Gpa> {
    AddrRange::new(Gpa(0), SIZE.into()).unwrap()
}

#[test]
fn l3_l4_the_smaller_page_of_guest_and_host_decides() {
    use PageSize::{Size1G, Size2M, Size4K};
    for guest in [Size4K, Size2M, Size1G] {
        for host in [Size4K, Size2M] {
            let mut world = identity(guest, host);
            let gva = 3 * M2 + 0x5123;
            assert_eq!(world.fault(0, gva, Access::WRITE), fixed(guest.min(host)), "{guest:?} over {host:?}");
            assert_eq!(world.hardware(0, gva, Access::WRITE), Some(world.hpa(gva)));
            world.check();
            world.finish();
        }
    }
}

#[test]
fn l3_a_1g_page_over_a_1g_page() {
    let mut world = identity(PageSize::Size4K, PageSize::Size4K);
    let (slot, frames) = (HVA + G1, 1 << 36);
    for page in (0..G1).step_by(K4 as usize) {
        let frame = HostFrame { hpa: Hpa(frames + page), size: PageSize::Size1G, writable: true };
        world.host.pages.insert((slot + page) / K4, frame);
    }
    world.slots.slots.push(Memslot {
        base: Gpa(G1),
        bytes: G1,
        hva: Hva(slot),
        readonly: false,
        log_dirty: false,
    });
    world.emulate(ROOT + K4 + 8, G1 | ALL | PS);
    assert_eq!(world.fault(0, G1 + 0x1234_5678, Access::WRITE), fixed(PageSize::Size1G));
    assert_eq!(world.hardware(0, 2 * G1 - 1, Access::WRITE), Some(frames + G1 - 1));
    assert_eq!(world.shadow.stats().pages_1g, 1);
    world.finish();
}

#[test]
fn l2_a_table_that_gets_a_shadow_breaks_the_large_leaf_around_it() {
    let mut world = identity(PageSize::Size2M, PageSize::Size2M);
    let gva = 2 * M2 + 0x7000;
    assert_eq!(world.fault(0, gva, Access::WRITE), fixed(PageSize::Size2M));
    // A page table in it: where the guest maps its first page by 512 GiB.
    let table = 2 * M2 + 0x3000;
    for (at, to) in [(table, table + K4), (table + K4, table + 2 * K4), (table + 2 * K4, table + 3 * K4)] {
        world.poke(at, to | ALL);
    }
    world.poke(table + 3 * K4, ALL);
    world.add_context();
    world.load(1, World::paging(&long_mode(table)).as_ref());
    world.access(1, 0, Access::READ).unwrap();
    assert_eq!(world.hardware(0, gva, Access::READ), None);
    assert_eq!(world.fault(0, gva, Access::WRITE), fixed(PageSize::Size4K));
    let refused = FaultOutcome::WriteProtected { gpa: Gpa(table) };
    assert_eq!(world.access(0, table, Access::WRITE), Err(refused));
    assert_eq!(world.fault(0, 3 * M2, Access::WRITE), fixed(PageSize::Size2M), "its neighbour stays whole");
    world.check();
    world.finish();
}

#[test]
fn d1_small_leaves_lose_w_and_keep_the_rest() {
    let mut world = identity(PageSize::Size4K, PageSize::Size4K);
    let gva = 3 * M2 + 0x5000;
    world.access(0, gva, Access::WRITE).unwrap();
    world.slots.slots[0].log_dirty = true;
    let flushes = world.shadow.flushes();
    assert_eq!(world.shadow.set_logging(everything(), true, &world.host).unwrap().leaves, 1);
    assert!(world.shadow.flushes() > flushes);
    assert_eq!(world.hardware(0, gva, Access::READ), Some(world.hpa(gva)));
    assert_eq!(world.hardware(0, gva, Access::WRITE), None);
    world.slots.slots[0].log_dirty = false;
    assert_eq!(world.shadow.set_logging(everything(), false, &world.host).unwrap().leaves, 0);
    world.check();
    world.finish();
}

/// A second, read-only slot from 64 MiB on over the last 2 MiB of the first one's host memory.
fn with_rom(world: &mut World) -> (u64, u64) {
    let (base, ram) = (64 << 20, SIZE - M2);
    world.slots.slots.push(Memslot {
        base: Gpa(base),
        bytes: M2,
        hva: Hva(HVA + ram),
        readonly: true,
        log_dirty: false,
    });
    (base, ram)
}

#[test]
fn a_table_in_a_read_only_slot_is_walked_and_its_flags_stay() {
    for flags in [A | D, 0] {
        let mut world = identity(PageSize::Size4K, PageSize::Size4K);
        let (rom, ram) = with_rom(&mut world);
        let entry = (5 * K4) | P | W | U | flags;
        world.poke(ram, entry);
        // The PDE of 2 MiB points to the table in ROM.
        world.emulate(ROOT + 2 * K4 + 8, rom | ALL);
        for access in [Access::READ, Access::WRITE] {
            assert_eq!(world.access(0, M2, access), Ok(world.hpa(5 * K4)), "{flags:#x}");
        }
        assert_eq!(world.peek(rom), entry);
        world.check();
        world.finish();
    }
}

#[test]
fn k5_a_process_switch_makes_no_table_and_no_fault() {
    let mut world = identity(PageSize::Size4K, PageSize::Size4K);
    // Four processes that share the tables of their first 512 GiB, and have one page of their own beyond.
    let process = |n: u64| 0x20_0000 + n * 8 * K4;
    for n in 0..4 {
        let root = process(n);
        world.poke(root, (ROOT + K4) | ALL);
        for level in 0..3 {
            let entry = if level == 0 { root + 8 } else { root + level * K4 };
            world.poke(entry, (root + (level + 1) * K4) | ALL);
        }
        world.poke(root + 3 * K4, ((n + 1) * K4) | ALL);
    }
    let switch = |world: &mut World, n| world.load(0, World::paging(&long_mode(process(n))).as_ref());
    let own = 1 << 39;
    let mut tables = Vec::new();
    for n in 0..4 {
        switch(&mut world, n);
        world.access(0, own, Access::READ).unwrap();
        world.access(0, 3 * M2, Access::READ).unwrap();
        tables.push(world.shadow.table_bytes() / K4);
    }
    assert_eq!(
        tables.windows(2).map(|two| two[1] - two[0]).collect::<Vec<_>>(),
        [4, 4, 4],
        "their own alone"
    );
    let faults = world.shadow.stats().pf_taken;
    for n in [2, 0, 3, 1, 0] {
        switch(&mut world, n);
        assert_eq!(world.hardware(0, own, Access::READ), Some(world.hpa((n + 1) * K4)));
        assert_eq!(world.hardware(0, 3 * M2, Access::READ), Some(world.hpa(3 * M2)));
        world.check();
    }
    assert_eq!(world.shadow.stats().pf_taken, faults);
    assert_eq!(world.shadow.table_bytes() / K4, tables[3]);
    world.finish();
}
