use ept::verify::{Guest, HostPage, Input, NoPage, Place, Report, Shadow, Unchecked, Violation};
use ept::{Attributes, Controls, Format, Kind, Legacy32, Mapper, Misconfiguration, Paging, Rights};
use memory_model::{Gpa, Hpa, PageSize};

use super::world::*;
use crate::world::*;

#[track_caller]
fn only(report: &Report, invariant: u8, address: u64) -> Violation {
    let [found] = report.findings[..] else { panic!("{report}") };
    assert_eq!((found.violation.invariant().number(), found.address), (invariant, gva(address)), "{report}");
    assert_eq!(broken(report), [(invariant, 1)]);
    found.violation
}

#[test]
fn i14_a_shadow_that_is_right_has_no_finding() {
    for controls in [Controls::empty(), Controls::WP, Controls::WP | Controls::SMEP] {
        let world = ShadowWorld::usual(controls);
        let report = world.verify();
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.coverage.leaves, [[15, 1, 0]]);
        assert_eq!(report.coverage.frames, 15 + 512);
        let unchecked: Vec<_> = report.unchecked.into_keys().collect();
        let expected = [Unchecked::NoCounts, Unchecked::Caches, Unchecked::NoOwner];
        assert!(unchecked.iter().all(|reason| expected.contains(reason)), "{unchecked:?}");
    }
}

#[test]
fn i14_a_frame_is_that_of_the_guests_page() {
    let mut world = ShadowWorld::usual(Controls::WP);
    for address in [A + K4, BIG] {
        let leaf = world.world.leaf(address);
        world.world.flip(leaf, 1 << 40);
        let (gpa, hpa, wrong) = match address {
            BIG => (LARGE, 0x3000_0000, 512),
            _ => (101 * K4, world.hpa(101 * K4), 1),
        };
        let seen = Hpa(hpa | 1 << 40);
        let expected = Violation::ShadowFrame { gpa: Gpa(gpa), expected: host(hpa), seen, wrong };
        assert_eq!(only(&world.verify(), 14, address), expected);
        world.world.flip(leaf, 1 << 40);
    }
    // The guest maps another page, and nobody has told its shadow.
    let entry = world.guest_entry(A, 1);
    world.world.flip(entry, K4);
    let seen = Hpa(world.hpa(100 * K4));
    let expected = host(world.hpa(101 * K4));
    let violation = Violation::ShadowFrame { gpa: Gpa(101 * K4), expected, seen, wrong: 1 };
    assert_eq!(only(&world.verify(), 14, A), violation);
    let text = world.verify().to_string();
    assert!(text.contains("root 0, GVA 0x400000: guest page 0x65000 is at 0x2"), "{text}");
}

/// Two pages of the guest in one frame, as the host says itself; the page that is at two addresses has one frame by right.
#[test]
fn i09_two_pages_of_the_guest_have_two_frames() {
    let mut world = ShadowWorld::usual(Controls::WP);
    let (first, second) = (world.hpa(100 * K4), world.hpa(101 * K4));
    let point = |world: &mut ShadowWorld, entry: u64, from: u64, to: u64| {
        world.world.flip(entry, from ^ to);
    };
    let (leaf, entry) = (world.world.leaf(A + K4), world.guest_entry(A + K4, 1));
    point(&mut world, leaf, second, first);
    for (page, aliases) in [(host(first), 1), (host(first).shared(), 0)] {
        world.world.host.set(HVA + 101 * K4, page);
        let report = world.verify();
        assert_eq!(report.findings.len(), aliases, "{report}");
        for found in &report.findings {
            let other = Place { address: Input::Gpa(Gpa(100 * K4)), ..Place::default() };
            assert_eq!(found.violation, Violation::Alias { hpa: Hpa(first), other });
            assert_eq!(found.address, Input::Gpa(Gpa(101 * K4)));
            assert_eq!(found.path.last().map(|step| step.entry), Some(world.world.read(leaf)));
        }
    }
    point(&mut world, entry, 101 * K4, 100 * K4);
    assert!(world.verify().is_clean(), "{}", world.verify());
}

#[test]
fn i14_one_wrong_frame_of_a_large_leaf() {
    let mut world = ShadowWorld::usual(Controls::WP);
    world.world.host.set(HVA + LARGE + 9 * K4, host(0x7000_0000));
    let expected = Violation::ShadowFrame {
        gpa: Gpa(LARGE + 9 * K4),
        expected: host(0x7000_0000),
        seen: Hpa(0x3000_9000),
        wrong: 1,
    };
    assert_eq!(only(&world.verify(), 14, BIG), expected);
}

#[test]
fn i14_a_leaf_grants_no_more_than_the_guest() {
    // Each page lacks one right; the shadow grants it.
    for (n, bit, right) in [
        (3, 1 << 1, Rights::WRITE),
        (4, 1 << 2, Rights::USER),
        (5, 1 << 63, Rights::EXEC),
        (6, 1 << 1, Rights::WRITE),
    ] {
        let mut world = ShadowWorld::usual(Controls::WP);
        let leaf = world.world.leaf(A + n * K4);
        world.world.flip(leaf, bit);
        let violation = only(&world.verify(), 14, A + n * K4);
        let gpa = Gpa((100 + n) * K4);
        assert_eq!(violation, Violation::GuestRights { gpa, allowed: FULL - right, seen: FULL });
    }
}

#[test]
fn i14_all_entries_of_the_guests_walk_count() {
    for level in 2..=4 {
        for (bit, pages) in [(1 << 1, 6), (1 << 2, 7), (1 << 63, 7)] {
            let mut world = ShadowWorld::usual(Controls::WP);
            let entry = world.guest_entry(A, level);
            world.world.flip(entry, bit);
            // The 2M page has another PDE.
            let pages = if level > 2 { pages + 1 } else { pages };
            assert_eq!(broken(&world.verify()), [(14, pages)], "{level} {bit:#x}");
        }
    }
}

/// A pointer of the shadow that withholds a right does so for all below it, and is a finding of its own kind.
#[test]
fn i14_all_entries_of_the_shadow_count() {
    let mut world = ShadowWorld::usual(Controls::WP);
    let (leaf, pointer) = (world.world.leaf(A + 3 * K4), world.world.entry(A, 2));
    world.world.flip(leaf, 1 << 1);
    world.world.flip(pointer, 1 << 1);
    assert_eq!(broken(&world.verify()), [(6, 1)]);
}

#[test]
fn i14_what_the_guest_has_no_page_for_is_stale() {
    type Change = fn(u64) -> u64;
    let changes: [(Change, NoPage); 3] = [
        (|entry| entry & !1, NoPage::NotPresent),
        (|entry| entry | 1 << 46, NoPage::Malformed { reason: Misconfiguration::ReservedBits(1 << 46) }),
        (|entry| entry & !(1 << 5), NoPage::NotAccessed { level: 1 }),
    ];
    for (change, expected) in changes {
        for level in 1..=4 {
            let mut world = ShadowWorld::usual(Controls::WP);
            let entry = world.guest_entry(A + 2 * K4, level);
            world.world.write(entry, change(world.world.read(entry)));
            let report = world.verify();
            let leaves = [1, 8, 9, 9][usize::from(level) - 1];
            assert_eq!(broken(&report), [(14, leaves)], "{report}");
            let reason = match expected {
                NoPage::NotAccessed { .. } => NoPage::NotAccessed { level },
                other => other,
            };
            let Violation::Stale { reason: seen, .. } = report.findings[0].violation else {
                panic!("{report}")
            };
            assert_eq!(seen, reason);
        }
    }
    let mut world = ShadowWorld::usual(Controls::WP);
    let entry = world.guest_entry(A, 2);
    world.world.write(entry, 0x7777_0000 | 0x67);
    let report = world.verify();
    let reason = NoPage::TableOutside { table: Gpa(0x7777_0000) };
    assert_eq!(report.findings[0].violation, Violation::Stale { reason, seen: Hpa(world.hpa(100 * K4)) });
    assert_eq!(broken(&report), [(14, 8)]);
}

#[test]
fn i14_a_leaf_is_no_larger_than_the_guests_page() {
    let mut pages: Vec<_> = (0..512).map(|n| page(BIG + n * K4, LARGE + n * K4)).collect();
    let mut world = ShadowWorld::new(Controls::WP);
    pages.iter().for_each(|&page| world.guest_maps(page));
    let large = Page { size: PageSize::Size2M, ..pages[0] };
    world.shadow(&[large], |_| true);
    let expected = PageSize::Size4K;
    let violation = Violation::LargerThanGuests { gpa: Gpa(LARGE), expected, seen: PageSize::Size2M };
    assert_eq!(only(&world.verify(), 14, BIG), violation);
    // Smaller is well.
    pages = vec![large];
    let mut world = ShadowWorld::new(Controls::WP);
    world.guest_maps(large);
    world.shadow(&pages, |_| false);
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.coverage.frames, 512);
    let leaf = world.world.leaf(BIG + 5 * K4);
    world.world.flip(leaf, K4);
    let violation = only(&world.verify(), 14, BIG + 5 * K4);
    assert!(matches!(violation, Violation::ShadowFrame { gpa: Gpa(gpa), .. } if gpa == LARGE + 5 * K4));
}

/// Rules I5 and I6: with CR0.WP clear a supervisor writes any page, and KVM's shadow of it lacks U.
#[test]
fn i14_without_wp_a_page_may_be_the_supervisors_to_write() {
    const W: u64 = 1 << 1;
    const U: u64 = 1 << 2;
    const NX: u64 = 1 << 63;
    let clean = |controls, bits| {
        let mut world = ShadowWorld::usual(controls);
        let leaf = world.world.leaf(A + 3 * K4);
        world.world.flip(leaf, bits);
        world.verify().is_clean()
    };
    assert!(clean(Controls::empty(), W | U));
    assert!(!clean(Controls::empty(), W), "a user's write");
    assert!(!clean(Controls::WP, W | U));
    assert!(!clean(Controls::SMEP, W | U), "a fetch of the supervisor");
    assert!(clean(Controls::SMEP, W | U | NX));
    // A write that leaves no D.
    let mut world = ShadowWorld::usual(Controls::empty());
    let leaf = world.world.leaf(A + 6 * K4);
    world.world.flip(leaf, W | U);
    assert!(!world.verify().is_clean());
}

#[test]
fn i14_tables_that_are_not_in_step_are_not_checked() {
    let mut world = ShadowWorld::usual(Controls::WP);
    let entry = world.guest_entry(A, 1);
    world.world.flip(entry, 1);
    let table = world.world.read(world.guest_entry(A, 2)) & 0x000f_ffff_ffff_f000;
    only(&world.verify(), 14, A);
    world.unsync = vec![Gpa(7 * M2), Gpa(table)];
    let report = world.verify();
    assert_eq!((report.is_clean(), report.unchecked(Unchecked::Unsync)), (true, 8), "{report}");
}

#[test]
fn i14_tables_that_the_host_does_not_tell_are_not_checked() {
    for page in [HostPage::UNKNOWN, HostPage::ABSENT] {
        let mut world = ShadowWorld::usual(Controls::WP);
        let table = world.world.read(world.guest_entry(A, 2)) & 0x000f_ffff_ffff_f000;
        world.world.host.set(HVA + table, page);
        let report = world.verify();
        assert_eq!(
            (report.is_clean(), report.unchecked(Unchecked::GuestTableUnknown)),
            (true, 8),
            "{report}"
        );
    }
}

/// One table of the guest at two addresses has one shadow; but a shadow is of one table.
#[test]
fn i07_i14_shadow_tables_may_be_shared_where_the_guests_are() {
    let mut world = ShadowWorld::usual(Controls::WP);
    let again = A + 64 * M2;
    let (guests, shadows) = (world.guest_entry(A, 2), world.world.entry(A, 2));
    let (to_guests, to_shadows) = (world.guest_entry(again, 2), world.world.entry(again, 2));
    world.world.write(to_guests, world.world.read(guests));
    world.world.write(to_shadows, world.world.read(shadows));
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.coverage.leaves, [[15, 1, 0]], "each counts once");
    // The other PDE grants less.
    world.world.flip(to_guests, 1 << 1);
    let report = world.verify();
    assert_eq!(broken(&report), [(14, 6)], "{report}");
    assert_eq!(report.findings[0].address, gva(again));
    assert_eq!(report.findings[0].path[2].entry_address(), to_shadows);
    assert_eq!(report.coverage.leaves, [[15, 1, 0]], "each counts once");
    // It leads nowhere.
    world.world.write(to_guests, 0);
    assert_eq!(broken(&world.verify()), [(14, 8)]);
    // A cycle.
    world.world.write(to_shadows, world.world.read(world.world.entry(A, 4)));
    let report = world.verify();
    assert_eq!(broken(&report), [(7, 1)], "{report}");
}

#[test]
fn i14_a_shadow_reached_too_often_is_not_passed() {
    let mut world = ShadowWorld::usual(Controls::WP);
    let (shadows, table) = (world.world.entry(A, 2), world.world.read(world.guest_entry(A, 2)));
    for n in 0..20 {
        let again = A + (64 + n) * M2;
        let (guest, shadow) = (world.guest_entry(again, 2), world.world.entry(again, 2));
        world.world.write(shadow, world.world.read(shadows));
        world.world.write(guest, table & 0xfff | ((32 + n) * K4));
    }
    let report = world.verify();
    assert_eq!(report.unchecked(Unchecked::ShadowedOften), 5, "{report}");
    assert_eq!(broken(&report), [(14, 15 * 8)], "{report}");
}

#[test]
fn i03_a_shadow_leaf_grants_no_more_than_its_slot() {
    for address in [B, B + K4] {
        let mut world = ShadowWorld::usual(Controls::WP);
        let leaf = world.world.leaf(address);
        world.world.flip(leaf, 1 << 1);
        assert!(matches!(only(&world.verify(), 3, address), Violation::Rights { .. }));
    }
}

#[test]
fn i01_a_shadow_leaf_lies_in_a_slot() {
    let mut world = ShadowWorld::usual(Controls::WP);
    world.world.slots.remove(1);
    assert!(matches!(only(&world.verify(), 1, BIG), Violation::NoSlot { .. }));
}

#[test]
fn i08_guest_tables_in_step_are_not_writable() {
    let mut world = ShadowWorld::usual(Controls::WP);
    let leaf = world.world.leaf(B + 5 * K4);
    world.world.flip(leaf, 1 << 1);
    let violation = Violation::GuestTableWritable { table: Gpa(ROOT) };
    assert_eq!(only(&world.verify(), 8, B + 5 * K4), violation);
    // The table that translates A, at an address that another one translates.
    let mut world = ShadowWorld::usual(Controls::WP);
    let table = world.world.read(world.guest_entry(A, 2)) & 0x000f_ffff_ffff_f000;
    let mapped = page(B + 7 * K4, table);
    world.guest_maps(mapped);
    world.shadow(&[mapped], |_| false);
    let leaf = world.world.leaf(mapped.gva);
    world.world.flip(leaf, 1 << 1);
    let violation = Violation::GuestTableWritable { table: Gpa(table) };
    assert_eq!(only(&world.verify(), 8, mapped.gva), violation);
    world.unsync = vec![Gpa(table)];
    let report = world.verify();
    assert_eq!((report.is_clean(), report.unchecked(Unchecked::Unsync)), (true, 8), "{report}");
}

#[test]
fn i08_a_shadow_table_is_mapped_by_no_leaf() {
    let mut world = ShadowWorld::usual(Controls::WP);
    let root = world.world.roots[0].root;
    world.world.host.set(HVA + 101 * K4, host(root));
    let leaf = world.world.leaf(A + K4);
    world.world.write(leaf, world.world.read(leaf) & 0xfff | root);
    let of = Place { guest: 0, root: 0, address: gva(0) };
    let violation = Violation::TableMapped { table: Hpa(root), level: 4, of };
    assert_eq!(only(&world.verify(), 8, A + K4), violation);
    // Nor by one of a second level, which may be there too.
    let mut second = World::new(Kind::Ept);
    second.memory = std::mem::take(&mut world.world.memory);
    let table = ept::FrameAllocator::allocate_table(&mut second.memory).unwrap();
    let mut paging = second.roots[0];
    paging.root = table;
    let ram = Attributes::ram(Kind::Ept, Rights::RWX);
    Mapper::new(&mut second.memory, paging).map(0, root, PageSize::Size4K, ram).unwrap();
    world.world.memory = std::mem::take(&mut second.memory);
    let slots = [slot(0, K4, HVA + 101 * K4)];
    let report = world.with(&world.world.slots, |memory, guest| {
        let policy = second.policy;
        verify(memory, &[guest, Guest { roots: &[paging], shadows: &[], slots: &slots, policy, ..guest }])
    });
    let mapped = |found: &&ept::verify::Finding| matches!(found.violation, Violation::TableMapped { .. });
    assert_eq!(report.findings.iter().filter(mapped).count(), 2, "{report}");
}

/// A table of 32-bit paging translates 4 MiB: its shadows are two, of one half each.
#[test]
fn i14_guests_with_32_bit_paging() {
    let mut world = ShadowWorld::new(Controls::WP);
    world.guest = Paging {
        controls: Controls::WP,
        ..Paging::new(Format::legacy32(Legacy32 { page_4m: true, pse_36: None }), ROOT)
    };
    // A directory with a table, and a 4 MiB page. All is present, writable, the user's, accessed, and dirty.
    let table = ROOT + K4;
    let put = |world: &mut ShadowWorld, gpa: u64, entry: u64| {
        let (at, shift) = (world.hpa(gpa & !7), (gpa & 4) * 8);
        world.world.write(at, world.world.read(at) | entry << shift);
    };
    put(&mut world, ROOT, table | 0x67);
    put(&mut world, ROOT + 4, LARGE | 0xe7);
    put(&mut world, table + 3 * 4, 101 * K4 + 0x67);
    put(&mut world, table + 515 * 4, 102 * K4 + 0x67);
    let pages = [page(3 * K4, 101 * K4), page(M2 + 3 * K4, 102 * K4)];
    let large = [0, M2].map(|half| Page { size: PageSize::Size2M, ..page(2 * M2 + half, LARGE + half) });
    world.shadow(&pages, |_| false);
    world.shadow(&large, |_| true);
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.coverage.frames, 2 + 1024);
    // The shadow of the first half in the place of the second.
    let (first, second) = (world.world.entry(0, 2), world.world.entry(M2, 2));
    world.world.write(second, world.world.read(first));
    assert!(matches!(only(&world.verify(), 14, M2 + 3 * K4), Violation::ShadowFrame { .. }));
}

#[test]
fn several_roots_of_a_guest_share_their_shadow_tables() {
    let mut world = ShadowWorld::usual(Controls::WP);
    // Another process of the guest: the kernel's half is the same.
    let other_root = 60 * K4;
    world.world.write(world.hpa(other_root) + 256 * 8, world.world.read(world.guest_entry(B, 4)));
    let table = ept::FrameAllocator::allocate_table(&mut world.world.memory).unwrap();
    world.world.write(table + 256 * 8, world.world.read(world.world.entry(B, 4)));
    let first = Shadow { paging: world.world.roots[0], guest: world.guest, unsync: &[] };
    let second = Shadow {
        paging: Paging { root: table, ..first.paging },
        guest: Paging { root: other_root, ..world.guest },
        unsync: &[],
    };
    let report = world.with(&world.world.slots, |memory, guest| {
        verify(memory, &[Guest { shadows: &[first, second], ..guest }])
    });
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.coverage.leaves, [[15, 1, 0]]);
    // Between guests they are not shared.
    let report = world.with(&world.world.slots, |memory, guest| {
        let other = Guest { shadows: &[second], ..guest };
        verify(memory, &[guest, other])
    });
    assert_eq!(broken(&report), [(7, 1)], "{report}");
}

#[test]
fn i07_shadow_tables_linked_a_thousandfold_are_looked_at_once() {
    let mut world = ShadowWorld::of(Controls::WP, &[page(A, 100 * K4)]);
    for level in 2..=4 {
        for entry in [world.guest_entry(A, level), world.world.entry(A, level)] {
            let value = world.world.read(entry);
            (0..512).for_each(|index| world.world.write(entry & !0xfff | (index * 8), value));
        }
    }
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.coverage.tables, report.coverage.frames), ([0, 1, 1, 1, 1, 0], 1));
    // The guest's page is gone, at 2^27 addresses: it is told once.
    let entry = world.guest_entry(A, 1);
    world.world.write(entry, 0);
    assert!(matches!(only(&world.verify(), 14, 0), Violation::Stale { .. }));
}
