//! Tables that mean harm: whatever they hold, each is looked at once.

use std::sync::atomic::{AtomicU64, Ordering};

use ept::verify::{Invariant, Unchecked, verify};
use ept::{Kind, MemoryError, PhysMemory, SparseMemory};
use memory_model::{AddrRange, Hpa};
use proptest::prelude::*;

use crate::world::*;

/// Counts what is read.
struct Counting<'a> {
    memory: &'a SparseMemory,
    entries: AtomicU64,
    tables: AtomicU64,
}

impl PhysMemory for Counting<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.memory.read_entry(address)
    }
    fn read_table(&self, table: u64, entries: &mut [u64; 512]) -> Result<(), MemoryError> {
        self.tables.fetch_add(1, Ordering::Relaxed);
        self.memory.read_table(table, entries)
    }
    fn compare_exchange(&self, address: u64, _: u64, _: u64) -> Result<bool, MemoryError> {
        panic!("{address:#x} is written")
    }
}

/// Verifies and checks that the work is in proportion to the tables there are: each is read twice, and a third time if
/// frames have to be named; and each pointer is tried once.
fn bounded(world: &World, most: usize) -> ept::verify::Report {
    let memory = Counting { memory: &world.memory, entries: AtomicU64::new(0), tables: AtomicU64::new(0) };
    let report = verify(&memory, &[world.guest()], ram(), most).unwrap();
    let frames = world.frames().len() as u64;
    assert!(memory.tables.into_inner() <= 3 * frames);
    assert!(memory.entries.into_inner() <= 512 * frames + 1);
    assert!(report.coverage.tables.iter().sum::<u64>() <= frames);
    assert!(report.findings.len() <= most);
    assert_eq!(report.unchecked(Unchecked::Changed), 0);
    report
}

fn fill(world: &mut World, table: u64, mut value: impl FnMut(u64) -> u64) {
    (0..512).for_each(|index| world.write(table + index * 8, value(index)));
}

const POINTER: u64 = 0x7;

#[test]
fn a_root_that_points_to_itself_512_times() {
    for kind in [Kind::Ept, Kind::Npt, Kind::Ia32e] {
        let mut world = World::empty(format(kind));
        let root = world.roots[0].root;
        fill(&mut world, root, |_| root | POINTER);
        let report = bounded(&world, 600);
        assert_eq!(broken(&report), [(7, 512)]);
        if kind == Kind::Ia32e {
            assert_eq!(report.findings[511].address.raw(), 0xffff_ff80_0000_0000);
        }
    }
}

/// 512 to the third paths, and as many leaves.
#[test]
fn tables_shared_512_fold_at_each_level() {
    let mut world = World::empty(format(Kind::Ept));
    let tables = [0, 1, 2, 3].map(|number| TABLES + number * K4);
    tables.iter().for_each(|&table| world.memory.add_frame(table));
    for level in 0..3 {
        fill(&mut world, tables[level], |_| tables[level + 1] | POINTER);
    }
    fill(&mut world, tables[3], |index| index << 30 | 0x77);
    let report = bounded(&world, 10);
    assert_eq!(report.count(Invariant::Tree), 3 * 511);
    assert_eq!(report.count(Invariant::OneSlot), 512);
    assert_eq!(report.coverage.tables, [0, 1, 1, 1, 1, 0]);
}

#[test]
fn every_entry_points_to_a_table_of_its_own_that_is_not_there() {
    let mut world = World::empty(format(Kind::Npt));
    let root = world.roots[0].root;
    fill(&mut world, root, |index| (0x1000_0000 + (index << 20)) | POINTER);
    assert_eq!(broken(&bounded(&world, 3)), [(7, 512)]);
}

#[test]
fn every_leaf_maps_the_same_frame_and_that_is_a_table() {
    let mut world = World::empty(format(Kind::Ept));
    world.slots = vec![slot(0, G1, 0x7f00_0000_0000)];
    let tables = [0, 1, 2, 3].map(|number| TABLES + number * K4);
    tables.iter().for_each(|&table| world.memory.add_frame(table));
    for level in 0..3 {
        world.write(tables[level], tables[level + 1] | POINTER);
    }
    fill(&mut world, tables[3], |_| tables[0] | 0x77);
    let report = bounded(&world, 5);
    assert_eq!(broken(&report), [(2, 512), (8, 512), (9, 511)]);
}

/// Slots as long as the address space, at its very end too.
#[test]
fn the_last_page_of_the_address_space() {
    let mut world = World::empty(format(Kind::Ia32e));
    let top = u64::MAX - (K4 - 1);
    world.slots = vec![slot(K4, u64::MAX - (2 * K4 - 1), K4), slot(top, K4, 0)];
    world.host.map(0, 0x5000_0000, K4);
    world.map(top, memory_model::PageSize::Size4K, world.all());
    let report = bounded(&world, 5);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.coverage.frames, 1);
    let entry = world.leaf(top);
    world.flip(entry, 2 * K4);
    let found = only(&bounded(&world, 5), 2, top);
    assert!(found.to_string().contains("0xfffffffffffff000"), "{found}");
}

#[test]
fn ram_may_begin_and_end_anywhere() {
    let world = World::new(Kind::Ept);
    let clean = world.verify();
    for (first, last) in
        [(0, 0), (TABLES + 1, u64::MAX >> 28), (0x2000_0000, 0x2000_3fff), (u64::MAX >> 12, u64::MAX >> 12)]
    {
        let range = AddrRange::inclusive(Hpa(first), Hpa(last)).unwrap();
        let report = verify(&world.memory, &[world.guest()], range, 10).unwrap();
        // Without the root nothing is looked at, and that is said.
        let reached = first <= TABLES + 1 && last > TABLES;
        assert_eq!(report.count(Invariant::Tree), u64::from(!reached));
        assert_eq!(report.coverage == clean.coverage, reached);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Garbage that looks like tables of each other.
    #[test]
    fn garbage_ends(kind in prop_oneof![Just(Kind::Ept), Just(Kind::Npt), Just(Kind::Ia32e)], seed: u64) {
        let mut world = World::empty(format(kind));
        world.slots = vec![slot(0, 1 << 38, 0x7f00_0000_0000)];
        let mut state = seed;
        let mut roll = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 20 ^ state << 40
        };
        for table in (TABLES..).step_by(K4 as usize).take(24) {
            world.memory.add_frame(table);
            fill(&mut world, table, |_| match roll() % 8 {
                0 => roll(),
                1 | 2 => 0,
                // No large leaves: a page of 1 GiB is looked up frame by frame.
                _ => (TABLES + roll() % 24 * K4) | ((roll() % 2) << 8) | POINTER,
            });
        }
        let report = bounded(&world, 50);
        prop_assert!(!report.is_clean());
    }
}
