//! What breaks a rule is refused by name, and changes nothing.

use ept::{
    Attributes, Ept, EptCaps, Error, Flags, Format, FrameAllocator, Kind, Levels, PhysMemory, Rights, Sizes,
    translate,
};
use memory_model::{AddrRange, Gpa, Gva, PageSize};

use super::world::{G1, K4, M2, World};

const SMALL: PageSize = PageSize::Size4K;
const LARGE: PageSize = PageSize::Size2M;
const HUGE: PageSize = PageSize::Size1G;

fn ept() -> World {
    World::new(Kind::Ept, Levels::Four)
}

fn gpa(first: u64, bytes: u64) -> AddrRange<Gpa> {
    AddrRange::new(Gpa(first), bytes.into()).unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(
    world: &mut World,
    operation: impl FnOnce(&mut World) -> Result<T, Error>,
    expected: impl FnOnce(&Error) -> bool,
) {
    let before = world.image();
    let error = operation(world).unwrap_err();
    assert!(expected(&error), "{error}");
    assert!(world.image() == before, "refused ({error}), and something has changed");
}

#[track_caller]
fn refused_as<T: std::fmt::Debug>(
    world: &mut World,
    operation: impl FnOnce(&mut World) -> Result<T, Error>,
    expected: Error,
) {
    refused(world, operation, |error| *error == expected);
}

#[test]
fn a_page_that_breaks_a_rule_is_refused_by_name() {
    let mut world = ept();
    let page = world.page(Rights::RWX);
    world.mapper().map(M2, 0, LARGE, page).unwrap();
    world.mapper().map(2 * M2 + K4, 0x5000, SMALL, page).unwrap();
    let write_only = world.page(Rights::WRITE);
    for (address, frame, size, attributes, expected) in [
        (0x1800, 0, SMALL, page, Error::Misaligned { address: 0x1800, size: SMALL }),
        (0, K4, LARGE, page, Error::Misaligned { address: K4, size: LARGE }),
        (M2, 0, HUGE, page, Error::Misaligned { address: M2, size: HUGE }),
        (1 << 48, 0, SMALL, page, Error::InputRange { address: 1 << 48, levels: 4 }),
        (0, 1 << 40, SMALL, page, Error::OutputRange { address: 1 << 40, bits: 40 }),
        (0, 0, SMALL, write_only, Error::Rights { rights: Rights::WRITE }),
    ] {
        refused_as(&mut world, |world| world.mapper().map(address, frame, size, attributes), expected);
    }
    let overlaps = |address, level| move |error: &Error| matches!(*error, Error::Overlap { address: a, level: l, .. } if (a, l) == (address, level));
    refused(&mut world, |world| world.mapper().map(M2 + K4, 0, SMALL, page), overlaps(M2 + K4, 2));
    refused(&mut world, |world| world.mapper().map(2 * M2, 0, LARGE, page), overlaps(2 * M2, 2));
    refused(&mut world, |world| world.mapper().map(0, 0, HUGE, page), overlaps(0, 3));

    let nothing = |address| Error::NotMapped { address };
    refused_as(&mut world, |world| world.mapper().unmap(2 * M2), nothing(2 * M2));
    refused_as(&mut world, |world| world.mapper().protect(0, Rights::RWX), nothing(0));
    let inside = Error::Misaligned { address: M2 + K4, size: LARGE };
    refused_as(&mut world, |world| world.mapper().unmap(M2 + K4), inside);
    refused_as(&mut world, |world| world.mapper().protect(M2 + K4, Rights::READ), inside);
    let rights = Error::Rights { rights: Rights::WRITE };
    refused_as(&mut world, |world| world.mapper().protect(2 * M2 + K4, Rights::WRITE), rights);
}

/// The last page of a range is judged like its first.
#[test]
fn a_range_is_refused_as_a_whole() {
    let mut world = ept();
    let page = world.page(Rights::RWX);
    world.mapper().map(2 * M2 + 7 * K4, 0, SMALL, page).unwrap();
    let all = |first, bytes, frame, sizes| {
        move |world: &mut World| world.mapper().map_range(gpa(first, bytes), frame, sizes, page)
    };
    let small = Sizes::Only(SMALL);
    let taken = |error: &Error| matches!(error, Error::Overlap { address, level: 1, .. } if *address == 2 * M2 + 7 * K4);
    refused(&mut world, all(0, 3 * M2, 0, small), taken);
    refused(&mut world, all(0, 3 * M2, 0, Sizes::UpTo(LARGE)), taken);
    let end = (1 << 48) - M2;
    refused_as(
        &mut world,
        all(end, M2 + K4, 0, small),
        Error::InputRange { address: (1 << 48) + K4 - 1, levels: 4 },
    );
    let width = Error::OutputRange { address: 1 << 40, bits: 40 };
    refused_as(&mut world, all(0, 2 * M2, (1 << 40) - M2, Sizes::UpTo(LARGE)), width);
    refused_as(
        &mut world,
        all(0, 2 * M2, !(M2 - 1), small),
        Error::OutputRange { address: !(M2 - 1), bits: 40 },
    );
    refused_as(
        &mut world,
        all(0, M2 + K4, 0, Sizes::Only(LARGE)),
        Error::Misaligned { address: M2 + K4, size: LARGE },
    );
    refused_as(&mut world, all(0, 0x1800, 0, small), Error::Misaligned { address: 0x1800, size: SMALL });
    let half = Error::Misaligned { address: 0x800, size: SMALL };
    refused_as(&mut world, |world| world.mapper().unmap_range(gpa(0x800, M2)), half);
    refused_as(&mut world, |world| world.mapper().protect_range(gpa(0x800, M2), Rights::READ), half);
}

#[test]
fn canonical_halves_are_not_one_range() {
    let mut world = World::new(Kind::Ia32e, Levels::Four);
    let page = world.page(Rights::RWX);
    let (low, high) = ((1 << 47) - K4, u64::MAX << 47);
    let across = AddrRange::inclusive(Gva(low), Gva(high + K4 - 1)).unwrap();
    let hole = Error::InputRange { address: high + K4 - 1, levels: 4 };
    refused_as(&mut world, |world| world.mapper().map_range(across, 0, Sizes::Only(SMALL), page), hole);
    refused_as(&mut world, |world| world.mapper().unmap_range(across), hole);
    refused_as(&mut world, |world| world.mapper().clear_dirty(across, |_| ()), hole);
    let top = AddrRange::inclusive(Gva(u64::MAX - (M2 - 1)), Gva(u64::MAX)).unwrap();
    world.mapper().map_range(top, 0, Sizes::UpTo(HUGE), page).unwrap();
    assert_eq!(world.at(top.first().0).size, LARGE);
    assert_eq!(world.mapper().unmap_range(top).unwrap().range(), Some(top));
}

#[test]
fn split_and_join_say_which_entry_prevents_them() {
    let mut world = ept();
    let page = world.page(Rights::RWX);
    world.mapper().map_range(gpa(0, 2 * M2), G1, Sizes::Only(SMALL), page).unwrap();
    world.mapper().map(G1, G1, HUGE, page).unwrap();
    refused_as(&mut world, |world| world.mapper().split(5 * K4 + 1), Error::NotLarge { address: 5 * K4 + 1 });
    refused_as(&mut world, |world| world.mapper().split(3 * M2), Error::NotMapped { address: 3 * M2 });
    refused_as(&mut world, |world| world.mapper().join(0, SMALL), Error::NotLarge { address: 0 });
    let half = Error::Misaligned { address: M2 + K4, size: LARGE };
    refused_as(&mut world, |world| world.mapper().join(M2 + K4, LARGE), half);
    refused_as(&mut world, |world| world.mapper().join(3 * M2, LARGE), Error::NotMapped { address: 3 * M2 });
    let prevents = |at, entry_level| move |error: &Error| matches!(*error, Error::NotJoinable { address, level, .. } if (address, level) == (at, entry_level));
    refused(&mut world, |world| world.mapper().join(G1, HUGE), prevents(G1, 3));
    refused(&mut world, |world| world.mapper().join(G1, LARGE), prevents(G1, 3));
    refused(&mut world, |world| world.mapper().join(0, HUGE), prevents(0, 2));

    // The last entry of 512, broken in one way after the other.
    let last = world.at(M2 - K4).step;
    let address = last.entry_address();
    for (what, entry) in [
        ("absent", 0),
        ("absent, with bits of software's", 1 << 40),
        ("another frame", last.entry + K4),
        ("no right to write", last.entry & !2),
        ("another memory type", last.entry & !(7 << 3)),
        ("no IPAT", last.entry & !(1 << 6)),
        ("a bit of software's", last.entry | 1 << 60),
        ("what would be bit 7 of a large page", last.entry | 1 << 7),
        ("malformed", last.entry & !1),
    ] {
        world.write(address, entry);
        println!("{what}");
        refused(
            &mut world,
            |world| world.mapper().join(0, LARGE),
            |error| *error == Error::NotJoinable { address: M2 - K4, level: 1, entry, size: LARGE },
        );
    }
    world.write(address, last.entry);

    // The pointer to the table takes a right away that the large page would give.
    let (pointer, entry) = world.pointer(0, 2);
    world.write(pointer, entry & !2);
    refused(&mut world, |world| world.mapper().join(0, LARGE), prevents(0, 2));
    world.write(pointer, entry);
    assert!(world.mapper().join(0, LARGE).unwrap().is_needed());

    // Contiguous, but from a frame where no large page begins.
    let _ = world.mapper().unmap_range(gpa(0, 2 * M2)).unwrap();
    world.mapper().map_range(gpa(0, M2), G1 + K4, Sizes::Only(SMALL), page).unwrap();
    refused(&mut world, |world| world.mapper().join(0, LARGE), prevents(0, 1));
}

#[test]
fn a_page_size_that_the_processor_lacks_is_refused() {
    let mut world = World::with_caps(Kind::Ept, Levels::Four, EptCaps::all() - EptCaps::PAGE_1G);
    let page = world.page(Rights::RWX);
    refused_as(&mut world, |world| world.mapper().map(0, 0, HUGE, page), Error::PageSize { size: HUGE });
    refused_as(&mut world, |world| world.mapper().join(0, HUGE), Error::PageSize { size: HUGE });
    let odd = PageSize::Size4M;
    refused_as(&mut world, |world| world.mapper().map(0, 0, odd, page), Error::PageSize { size: odd });
    refused_as(&mut world, |world| world.mapper().join(0, odd), Error::PageSize { size: odd });
    // 1 GiB without 2 MiB: its pieces could not be said.
    let mut world = World::with_caps(Kind::Ept, Levels::Four, EptCaps::all() - EptCaps::PAGE_2M);
    world.mapper().map(0, 0, HUGE, page).unwrap();
    refused_as(&mut world, |world| world.mapper().split(0), Error::PageSize { size: LARGE });
    refused_as(&mut world, |world| world.mapper().unmap_range(gpa(0, K4)), Error::PageSize { size: LARGE });
}

/// Bit 61 is software's in a large page, and asks for sub-page permissions in a small one.
#[test]
fn a_bit_that_means_something_in_small_pages_alone_is_in_the_way() {
    let mut world = ept();
    let format = Ept {
        sub_page_write: true,
        ..Ept::new(Levels::Four, EptCaps::all(), world.paging.format.max_phy_addr())
    };
    world.paging.format = Format::ept(format);
    let page = world.page(Rights::RWX);
    let bit = 1 << 61;
    world.mapper().map(0, 0, LARGE, Attributes { software: bit, ..page }).unwrap();
    let bits = Error::SoftwareBits { bits: bit, size: SMALL };
    refused_as(&mut world, |world| world.mapper().split(0), bits);
    refused_as(&mut world, |world| world.mapper().protect_range(gpa(0, K4), Rights::READ), bits);
    let _ = world.mapper().unmap(0).unwrap();
    world.mapper().map_range(gpa(0, M2), 0, Sizes::Only(SMALL), page).unwrap();
    for small in world.pages() {
        world.write(small.step.entry_address(), small.step.entry | bit);
    }
    let entry = world.at(0).step.entry;
    refused_as(
        &mut world,
        |world| world.mapper().join(0, LARGE),
        Error::NotJoinable { address: 0, level: 1, entry, size: LARGE },
    );
}

#[test]
fn malformed_entries_stay_and_are_told() {
    let mut world = ept();
    let page = world.page(Rights::RWX);
    world.mapper().map_range(gpa(0, 8 * K4), 0, Sizes::Only(SMALL), page).unwrap();
    let broken = world.at(7 * K4).step;
    world.write(broken.entry_address(), 2);
    let malformed = |error: &Error| matches!(error, Error::Malformed { level: 1, entry: 2, .. });
    refused(&mut world, |world| world.mapper().unmap_range(gpa(0, M2)), malformed);
    refused(&mut world, |world| world.mapper().unmap(7 * K4), malformed);
    refused(&mut world, |world| world.mapper().protect_range(gpa(0, M2), Rights::READ), malformed);
    refused(&mut world, |world| world.mapper().map(7 * K4, 0, SMALL, page), malformed);
    world.write(world.paging.root + 8, 2);
    let at_root = |error: &Error| matches!(error, Error::Malformed { level: 4, entry: 2, .. });
    refused(&mut world, |world| world.mapper().map(1 << 39, 0, SMALL, page), at_root);
}

#[test]
fn flags_are_not_asked_for_where_hardware_sets_none() {
    let mut world = World::with_caps(Kind::Ept, Levels::Four, EptCaps::all() - EptCaps::ACCESSED_DIRTY);
    let page = world.page(Rights::RWX);
    world.mapper().map(0, 0, SMALL, page).unwrap();
    refused_as(&mut world, |world| world.mapper().clear_accessed(gpa(0, K4), |_| ()), Error::NoFlags);
    refused_as(&mut world, |world| world.mapper().clear_dirty(gpa(0, K4), |_| ()), Error::NoFlags);
}

/// A table that the allocator may not give: above MAXPHYADDR, misaligned, or where no memory is. It is the second of
/// two, and found out before the first is linked.
#[test]
fn a_bad_table_is_given_back() {
    for bad in [1 << 40, 0x8_0800, 0x666_0000] {
        let mut world = ept();
        let page = world.page(Rights::RWX);
        world.mapper().map(2 * M2, 0, LARGE, page).unwrap();
        world.bad = Some((bad, 1));
        refused(
            &mut world,
            |world| world.mapper().map_range(gpa(0, 2 * M2), 0, Sizes::Only(SMALL), page),
            |error| match error {
                Error::OutputRange { address, .. } | Error::Misaligned { address, .. } => *address == bad,
                Error::Memory(_) => bad == 0x666_0000,
                _ => false,
            },
        );
    }
}

/// Read-only memory under the second of two tables is found out before the first is changed.
#[test]
fn read_only_tables_are_found_out_first() {
    let mut world = ept();
    let page = world.page(Rights::RWX);
    world.mapper().map_range(gpa(M2 - K4, 2 * K4), 0, Sizes::Only(SMALL), page).unwrap();
    world.read_only = Some(world.at(M2).step.table);
    for operation in [0, 1, 2] {
        refused(
            &mut world,
            |world| match operation {
                0 => world.mapper().unmap_range(gpa(M2 - K4, 2 * K4)).map(|_| ()),
                1 => world.mapper().protect_range(gpa(M2 - K4, 2 * K4), Rights::READ).map(|_| ()),
                _ => world.mapper().map_range(gpa(M2 + K4, M2), 0, Sizes::Only(SMALL), page),
            },
            |error| matches!(error, Error::Memory(_)),
        );
    }
}

#[test]
fn a_map_that_runs_out_of_tables_changes_nothing() {
    let mut world = ept();
    let page = world.page(Rights::RWX);
    for left in 0..3 {
        world.left = left;
        refused_as(&mut world, |world| world.mapper().map(K4, K4, SMALL, page), Error::OutOfTables);
        assert_eq!((world.tables(), world.left), (1, left));
    }
    world.left = 3;
    world.mapper().map(K4, K4, SMALL, page).unwrap();
    let read = translate(&world, &world.paging, K4, ept::Access::READ, Flags::Keep);
    assert_eq!(read.unwrap().address, K4);
    assert_eq!(world.allocate_table(), None);
    assert!(world.read_entry(world.paging.root).unwrap() != 0);
}
