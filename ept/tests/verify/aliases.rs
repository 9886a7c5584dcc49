//! Invariant 9: frames with more than one address.

use ept::verify::{Guest, HostPage, Input, Place, Unchecked, UnknownHost, Violation};
use ept::{FrameAllocator, Kind, Paging};
use memory_model::{Gpa, Hpa, PageSize};

use crate::world::*;

#[test]
fn i09_a_frame_has_one_address() {
    for kind in KINDS {
        let mut world = World::new(kind);
        // The host has one frame behind two pages, and does not say that it is shared.
        let page = world.host.get(0x7f00_0000_1000);
        world.host.set(0x7f00_0000_8000, page);
        let (from, to) = (world.leaf(K4), world.leaf(8 * K4));
        world.write(to, world.read(from));
        let found = only(&world.verify(), 9, 8 * K4);
        let other = Place { guest: 0, root: 0, address: Input::Gpa(Gpa(K4)) };
        assert_eq!(found.violation, Violation::Alias { hpa: page.hpa().unwrap(), other });
        assert_eq!(found.path.last().unwrap().entry_address(), to);
        for hva in [0x7f00_0000_1000, 0x7f00_0000_8000] {
            world.host.set(hva, page.shared());
        }
        assert!(world.verify().is_clean());
    }
}

#[test]
fn i09_a_frame_inside_a_large_leaf_has_one_address() {
    let mut world = World::new(Kind::Ept);
    let frame = 8 * G1 + 77 * K4;
    let leaf = world.leaf(K4);
    world.write(leaf, world.read(leaf) & 0xfff | frame);
    let report = world.verify();
    assert_eq!(broken(&report), [(2, 1), (9, 1)]);
    let found = report.findings.iter().find(|found| found.address != Input::Gpa(Gpa(K4))).unwrap();
    let other = Place { guest: 0, root: 0, address: Input::Gpa(Gpa(K4)) };
    assert_eq!(
        (found.address, found.violation),
        (Input::Gpa(Gpa(G1 + 77 * K4)), Violation::Alias { hpa: Hpa(frame), other })
    );
}

/// A second guest with tables of its own in the same memory, over the same or another process.
fn two_guests(process: u32) -> (World, World, u32) {
    let mut first = World::new(Kind::Ept);
    let mut second = World::empty(format(Kind::Ept));
    second.roots[0].root = first.memory.allocate_table().unwrap();
    second.slots = vec![slot(0, 16 * K4, 0x7f00_0000_0000)];
    second.host = first.host.clone();
    std::mem::swap(&mut first.memory, &mut second.memory);
    let all = second.all();
    (0..16).for_each(|page| second.map(page * K4, PageSize::Size4K, all));
    std::mem::swap(&mut first.memory, &mut second.memory);
    (first, second, process)
}

#[test]
fn i09_guests_share_no_frame() {
    for process in [0, 1] {
        let (first, second, process) = two_guests(process);
        let guests = [first.guest(), Guest { process, ..second.guest() }];
        let report = verify(&first.memory, &guests);
        if process == 0 {
            assert!(report.is_clean(), "two address spaces of one process: {report}");
            continue;
        }
        assert_eq!(broken(&report), [(9, 15)]);
        let found = report.findings[0];
        assert_eq!((found.guest, found.address), (1, Input::Gpa(Gpa(0))));
        let other = Place { guest: 0, root: 0, address: Input::Gpa(Gpa(0)) };
        assert_eq!(found.violation, Violation::Alias { hpa: Hpa(0x2000_0000), other });
    }
}

#[test]
fn i09_slots_that_alias_one_hva_may_share() {
    let mut world = World::new(Kind::Ept);
    // Half of the first slot's HVAs, and as many past them.
    world.host.map(0x7f00_0001_0000, 0x2200_0000, 8 * K4);
    world.slots.push(slot(7 * M2, 16 * K4, 0x7f00_0000_8000));
    world.leaves = None;
    let all = world.all();
    (0..16).for_each(|page| world.map(7 * M2 + page * K4, PageSize::Size4K, all));
    assert!(world.verify().is_clean());
    // But where the HVAs are its own, the frames are too.
    let (from, to) = (world.leaf(3 * K4), world.leaf(7 * M2 + 12 * K4));
    world.write(to, world.read(from));
    let frame = world.host.get(0x7f00_0000_3000);
    world.host.set(0x7f00_0001_4000, frame);
    only(&world.verify(), 9, 7 * M2 + 12 * K4);
}

#[test]
fn i09_several_roots_of_one_guest_map_the_same() {
    let mut world = World::new(Kind::Ept);
    let root = world.memory.allocate_table().unwrap();
    world.roots.push(Paging { root, ..world.roots[0] });
    world.leaves = None;
    let (all, frame) = (world.all(), world.host.get(0x7f00_0000_3000).hpa().unwrap().raw());
    world.map_to(1, 3 * K4, frame, PageSize::Size4K, all);
    world.map_to(1, M2, 0x3000_0000, PageSize::Size2M, all);
    assert!(world.verify().is_clean());
    // The second root maps page 4 where page 3 is: wrong, and an alias.
    world.map_to(1, 4 * K4, frame, PageSize::Size4K, all);
    let report = world.verify();
    assert_eq!(broken(&report), [(2, 1), (9, 1)]);
    assert!(report.findings.iter().all(|found| found.root == 1 && found.address == Input::Gpa(Gpa(4 * K4))));
    // If the host does not tell, whether the second root is right is not known either.
    let report = verify(&world.memory, &[Guest { host: &UnknownHost, ..world.guest() }]);
    assert_eq!((report.is_clean(), report.unchecked(Unchecked::AliasUnknown)), (true, 512 + 2));
}

#[test]
fn i09_frames_outside_of_ram_are_not_checked() {
    let mut world = World::new(Kind::Ept);
    let device = HostPage::at(Hpa(1 << 45)).device();
    world.host.set(0x7f00_0000_3000, device);
    let leaf = world.leaf(3 * K4);
    world.write(leaf, 1 << 45 | 0x7);
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.unchecked(Unchecked::OutsideRam), 1);
}
