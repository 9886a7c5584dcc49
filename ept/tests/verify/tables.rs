//! Invariants 7, 8 and 15: the tables themselves.

use ept::Kind;
use ept::verify::{HostPage, Input, Place, Unchecked, Violation};
use memory_model::{Gpa, Hpa};

use crate::world::*;

#[test]
fn i07_each_table_is_reached_once() {
    for kind in KINDS {
        let mut world = World::new(kind);
        // The page table of 0 to 2 MiB once more for 6 MiB.
        let pointer = world.read(world.entry(0, 2));
        let again = world.entry(3 * M2, 2);
        world.write(again, pointer);
        let found = only(&world.verify(), 7, 3 * M2);
        let table = Hpa(pointer & 0x000f_ffff_ffff_f000);
        let first = Place { guest: 0, root: 0, address: Input::Gpa(Gpa(0)) };
        assert_eq!(found.violation, Violation::Reached { table, level: 1, first, first_level: 1 });
        assert_eq!(found.path.last().unwrap().entry_address(), again);
    }
}

#[test]
fn i07_levels_go_down() {
    for kind in KINDS {
        for (gpa, level) in [(3 * M2, 2), (3 * G1, 3), (3 << 39, 4)] {
            // The root again, as a table of a lower level: a cycle, but for level 2.
            let mut world = World::new(kind);
            let (root, entry) = (world.roots[0].root, world.entry(gpa, level));
            world.write(entry, world.read(world.entry(0, 4)) & 0xfff | root);
            let found = only(&world.verify(), 7, gpa);
            let first = Place { guest: 0, root: 0, address: Input::Gpa(Gpa(0)) };
            let violation = Violation::Reached { table: Hpa(root), level: level - 1, first, first_level: 4 };
            assert_eq!(found.violation, violation);
        }
    }
}

#[test]
fn i07_tables_lie_in_ram() {
    for kind in KINDS {
        // In the RAM's range but not there; and beyond it.
        for table in [0x5000_0000, 1 << 40] {
            let mut world = World::new(kind);
            let entry = world.entry(7 * M2, 2);
            world.write(entry, world.read(world.entry(0, 2)) & 0xfff | table);
            let found = only(&world.verify(), 7, 7 * M2);
            assert_eq!(found.violation, Violation::Outside { table: Hpa(table), level: 1 });
        }
    }
    let mut world = World::new(Kind::Ept);
    world.roots[0].root = 0x5000_0000;
    only(&world.verify_without_counts(), 7, 0);
}

#[test]
fn i07_guests_share_no_table() {
    let world = World::new(Kind::Ept);
    let guests = [world.guest(), world.guest()];
    let report = verify(&world.memory, &guests);
    assert_eq!(broken(&report), [(7, 1), (12, 3)]);
    let found = report.findings.iter().find(|found| found.violation.invariant().number() == 7).unwrap();
    assert_eq!((found.guest, found.path.len()), (1, 0));
}

#[test]
fn i08_no_table_is_mapped() {
    for kind in KINDS {
        for (gpa, shared) in [(3 * K4, false), (3 * K4, true), (M2, false), (M2, true)] {
            let mut world = World::new(kind);
            // Host and leaf agree: it is the host that gave a table's frame to the guest.
            let table = world.read(world.entry(0, 2)) & 0x000f_ffff_ffff_f000;
            let leaf = world.leaf(gpa);
            let (hva, frame, at) = match gpa {
                M2 => (0x7f00_4000_0000, table & !(M2 - 1), M2 + (table & (M2 - 1))),
                _ => (0x7f00_0000_3000, table, gpa),
            };
            let bytes = if gpa == M2 { M2 } else { K4 };
            let old = world.read(leaf);
            let bits = 0x000f_ffff_ffff_f000 & !(bytes - 1);
            world.write(leaf, old & !bits | frame);
            for offset in (0..bytes).step_by(K4 as usize) {
                let page = HostPage::at(Hpa(frame + offset));
                world.host.set(hva + offset, if shared { page.shared() } else { page });
            }
            let report = world.verify();
            let (tables, _) = (world.frames().len() as u64, old);
            let count = if gpa == M2 { tables } else { 1 };
            assert_eq!(broken(&report), [(8, count)], "{kind:?} {gpa:#x} {shared}: {report}");
            let of = Place { guest: 0, root: 0, address: Input::Gpa(Gpa(0)) };
            let expected = Violation::TableMapped { table: Hpa(table), level: 1, of };
            let found = report.findings.iter().find(|found| found.address == Input::Gpa(Gpa(at))).unwrap();
            assert_eq!(found.violation, expected);
            assert_eq!(found.path.last().unwrap().entry_address(), leaf);
        }
    }
}

#[test]
fn i15_tables_are_their_owners() {
    let mut world = World::new(Kind::Ept);
    let report = world.verify();
    assert_eq!((report.is_clean(), report.unchecked(Unchecked::NoOwner)), (true, 1));
    let mut frames = world.frames();
    frames.reverse();
    let last = frames.remove(0);
    world.tables = Some(frames.clone());
    let found = only(&world.verify(), 15, 5 * M2);
    assert_eq!(found.violation, Violation::NotOwned { table: last });
    frames.extend([last, Hpa(0x7777_0000)]);
    world.tables = Some(frames);
    let found = only(&world.verify(), 15, 0);
    assert_eq!(found.violation, Violation::NotReached { table: Hpa(0x7777_0000) });
}
