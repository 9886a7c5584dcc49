//! Invariant 13: what is remembered and no longer given, as [`Tlb::stale`] lists it.

use ept::tlb::{InvEpt, LinearSpace, Mapped, Stale, Tlb, Translation};
use ept::{
    Access, Attributes, Caching, Controls, Cr3, Flags, FrameAllocator, Ia32e, Kind, Levels, Mapper, Paging,
    PhysMemory, Rights, SparseMemory,
};
use memory_model::PageSize;

use crate::world::{DATA, FIRST, FULL, OTHER_RAM, PAGE, RAM, WIDTH, World, page, world};

fn spaces(world: &World) -> [Mapped; 1] {
    [Mapped { vpid: 0, pcid: 0, guest: Some(world.guest), second: Some(world.second) }]
}

fn stale(world: &World) -> Vec<Stale> {
    let result = world.tlb.stale(&world.memory, &spaces(world));
    assert_eq!(result.unknown, 0);
    result.stale
}

/// The linear and the guest-physical address of what is stale.
fn addresses(stale: &[Stale]) -> Vec<(bool, u64)> {
    stale.iter().map(|stale| (stale.linear, stale.address)).collect()
}

/// A world in which page 0 has been written and page 1 read.
fn used() -> World {
    let mut world = world(0);
    world.access(page(0), Access::WRITE).unwrap();
    world.read(page(1));
    world
}

const BOTH: [(bool, u64); 2] = [(false, DATA), (true, FIRST)];

#[test]
fn i13_what_has_just_been_walked_is_not_stale() {
    let world = used();
    let result = world.tlb.stale(&world.memory, &spaces(&world));
    assert_eq!(result.stale, []);
    // Two pages and the guest's PT; in the EPT those, the guest's four tables, and the table that they all are in.
    assert_eq!((result.compared, result.unknown), (2 + 1 + 2 + 4 + 1, 0));
}

#[test]
fn i13_a_change_of_a_leaf_makes_stale_what_came_through_it() {
    type Change = fn(u64) -> u64;
    let changes: [(&str, Change); 6] = [
        ("W taken away", |entry| entry & !2),
        ("not present", |_| 0),
        ("another frame", |entry| entry + PAGE),
        ("another memory type", |entry| entry & !(0x7 << 3)),
        ("A cleared", |entry| entry & !(1 << 8)),
        ("D cleared", |entry| entry & !(1 << 9)),
    ];
    for (name, change) in changes {
        let mut world = used();
        world.change(world.ept_leaf(DATA), change);
        assert_eq!(addresses(&stale(&world)), BOTH, "{name}");
        world.tlb.invept(InvEpt::Single(world.eptp));
        assert_eq!(stale(&world), [], "{name}");
    }
    // Page 1 was not written: D is not remembered, and may go.
    let world = used();
    world.change(world.ept_leaf(DATA + PAGE), |entry| entry & !(1 << 9));
    assert_eq!(stale(&world), []);
}

#[test]
fn i13_both_values_are_told() {
    let world = used();
    world.change(world.ept_leaf(DATA), |entry| (entry & !2) + PAGE);
    let [physical, combined] = stale(&world)[..] else { panic!() };
    let caching = Caching::EPT_RAM;
    let page = |frame, rights| Translation::Page { frame, rights, caching, accessed: true, dirty: true };
    let read = Rights::READ | Rights::EXEC;
    let second = Some(world.second.root);
    let expected = Stale {
        vpid: 0,
        pcid: Some(0),
        second,
        linear: false,
        address: DATA,
        remembered: page(RAM + DATA, Rights::RWX),
        present: Some(page(RAM + DATA + PAGE, read)),
    };
    assert_eq!(physical, expected);
    let expected = Stale {
        linear: true,
        address: FIRST,
        remembered: page(RAM + DATA, FULL),
        present: Some(page(RAM + DATA + PAGE, read | Rights::USER)),
        ..expected
    };
    assert_eq!(combined, expected);
}

#[test]
fn i13_iv2_a_new_grant_makes_nothing_stale() {
    let mut world = world(0);
    let leaf = world.ept_leaf(DATA);
    world.change(leaf, |entry| entry & !2);
    world.read(page(0));
    world.change(leaf, |entry| entry | 2);
    assert_eq!(stale(&world), []);
}

#[test]
fn i13_a_change_of_the_guests_own_entry_is_a_matter_of_its_linear_address() {
    let mut world = used();
    world.change(world.guest_entry(page(0), 1), |entry| entry + 3 * PAGE);
    let [found] = stale(&world)[..] else { panic!() };
    assert_eq!((found.linear, found.address), (true, FIRST));
    let frame = |translation| match translation {
        Translation::Page { frame, .. } => frame,
        Translation::Table { .. } => panic!(),
    };
    assert_eq!(frame(found.remembered), RAM + DATA);
    assert_eq!(found.present.map(frame), Some(RAM + DATA + 3 * PAGE));
    world.tlb.invlpg(LinearSpace::default(), FIRST);
    assert_eq!(stale(&world), []);
}

#[test]
fn i13_tables_may_be_stale_too() {
    let mut world = used();
    let (pde, old) = (world.guest_entry(page(0), 2), world.guest_entry(page(0), 1) & !0xfff);
    // Another table with the same pages: only the table is another.
    let other = RAM + DATA + 20 * PAGE;
    for entry in (0..512).map(|index| index * 8) {
        world.change(other + entry, |_| world.entry(old + entry));
    }
    world.change(pde, |entry| entry & 0xfff | (other - RAM));
    let [found] = stale(&world)[..] else { panic!("{:?}", stale(&world)) };
    let table = |table| Translation::Table { level: 1, table, host: Some(RAM + table), rights: FULL };
    assert_eq!((found.remembered, found.present), (table(old - RAM), Some(table(other - RAM))));
    // With fewer rights above it.
    world.change(pde, |entry| entry & 0xfff & !2 | (old - RAM));
    let found = stale(&world);
    assert_eq!(found.len(), 3, "the table and both pages: {found:?}");
    world.tlb.invlpg(LinearSpace::default(), FIRST + PAGE);
    assert_eq!(addresses(&stale(&world)), [(true, FIRST)]);
    // A large page in the place of the second level's table.
    let walk = ept::walk(&world.memory, &world.second, DATA, Access::READ, Flags::Keep);
    let pde = walk.path[2].entry_address();
    world.tlb.flush(0);
    world.change(pde, |_| OTHER_RAM | 0x7 | 6 << 3 | 1 << 7 | 1 << 8 | 1 << 9);
    let tables =
        stale(&world).into_iter().filter(|stale| matches!(stale.remembered, Translation::Table { .. }));
    assert_eq!(tables.map(|stale| stale.present).collect::<Vec<_>>(), [None]);
}

#[test]
fn i13_what_belongs_to_other_spaces_is_not_passed() {
    let mut world = used();
    let space = LinearSpace { vpid: 7, pcid: 0, global_pages: false };
    world.access_in(space, page(0), Access::READ).unwrap();
    let result = world.tlb.stale(&world.memory, &spaces(&world));
    assert_eq!((result.stale.len(), result.unknown), (0, 2), "a page and a table of VPID 7");
    let result = world.tlb.stale(&world.memory, &[]);
    assert_eq!((result.compared, result.unknown), (0, 12));
}

#[test]
fn i13_global_pages_are_those_of_some_pcid() {
    let mut world = world(0);
    world.change(world.guest_entry(page(0), 1), |entry| entry | 1 << 8);
    let space = LinearSpace { vpid: 0, pcid: 5, global_pages: true };
    world.access_in(space, page(0), Access::WRITE).unwrap();
    let mut spaces = [5, 6].map(|pcid| Mapped { pcid, ..spaces(&world)[0] });
    spaces[1].guest = Some(Paging { root: DATA + 30 * PAGE, ..world.guest });
    assert_eq!(world.tlb.stale(&world.memory, &spaces).stale, []);
    world.change(world.guest_entry(page(0), 1), |entry| entry & !2);
    let found = world.tlb.stale(&world.memory, &spaces).stale;
    assert_eq!(found.iter().map(|stale| (stale.pcid, stale.address)).collect::<Vec<_>>(), [(None, FIRST)]);
}

/// Without a second level, and in pieces of a large page.
#[test]
fn i13_linear_pages() {
    let mut memory = SparseMemory::allocating_from(0x10_0000);
    let root = memory.allocate_table().unwrap();
    let paging = Paging::ia32e(Cr3::new(root, WIDTH).unwrap(), Ia32e::new(Levels::Four, WIDTH), Controls::WP);
    let attributes = Attributes::ram(Kind::Ia32e, FULL);
    let (address, frame) = (0x7fff_ffe0_0000, 0x4000_0000);
    Mapper::new(&mut memory, paging).map(address, frame, PageSize::Size2M, attributes).unwrap();
    let mut tlb = Tlb::new(64, 64);
    let space = LinearSpace { vpid: 3, pcid: 4, global_pages: false };
    tlb.linear(&memory, &paging, space, address + 0x5678, Access::READ, Flags::Set).unwrap();
    let spaces = [Mapped { vpid: 3, pcid: 4, guest: Some(paging), second: None }];
    assert_eq!(tlb.stale(&memory, &spaces).stale, []);
    let walk = ept::walk(&memory, &paging, address, Access::READ, Flags::Keep);
    let leaf = walk.path[2].entry_address();
    memory.write_entry(leaf, memory.read_entry(leaf).unwrap() & !4).unwrap();
    let [found] = tlb.stale(&memory, &spaces).stale[..] else { panic!() };
    assert_eq!((found.vpid, found.pcid, found.second), (3, Some(4), None));
    assert_eq!((found.linear, found.address), (true, address + 0x5000));
    assert!(matches!(found.remembered, Translation::Page { frame: at, .. } if at == frame + 0x5000));
}
