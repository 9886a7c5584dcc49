//! Each invariant: tables that keep it, and tables that break it and nothing else.

use ept::mmu::Memslot;
use ept::verify::{
    DirtyLog, Guest, HostPage, HostPages, Limit, Place, Policy, Unchecked, UnknownHost, Verifier, Violation,
};
use ept::{
    Caching, Ept, EptCaps, Error, Format, FrameAllocator, Kind, Legacy32, Levels, MemoryType,
    Misconfiguration, Pae, Paging, Rights,
};
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};

use crate::world::*;

const KINDS: [Kind; 3] = [Kind::Ept, Kind::Npt, Kind::Ia32e];

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for kind in KINDS {
        let mut world = World::new(kind);
        world.tables = Some(world.frames());
        let report = world.verify();
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.coverage.leaves, [[535, 1, 1]]);
        assert_eq!(report.coverage.frames, 535 + 512 + 262_144);
        // Under 0 to 1 GiB: the first page table, one each at 4 and 8 MiB; the one of 1 GiB is a leaf of the PDPT.
        assert_eq!(report.coverage.tables, [0, 4, 1, 1, 1, 0]);
        let unchecked: Vec<_> = report.unchecked.into_iter().collect();
        assert_eq!(unchecked, [(Unchecked::Caches, 1), (Unchecked::ShadowTables, 1)]);
    }
}

#[test]
fn five_levels_are_no_different() {
    let mut world = World::of(ept(EptCaps::all(), Levels::Five, true));
    assert!(world.verify().is_clean());
    let entry = world.entry(0, 5);
    world.flip(entry, 1 << 7);
    let found = only(&world.verify_without_counts(), 5, 0);
    let reason = Misconfiguration::ReservedBits(1 << 7);
    assert_eq!(found.violation, Violation::Misconfigured { reason });
    assert_eq!(found.path.iter().map(|step| step.level).collect::<Vec<_>>(), [5]);
}

#[test]
fn i01_a_leaf_lies_in_one_slot() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let slot = world.slots.remove(0);
        let report = world.verify();
        assert_eq!(broken(&report), [(1, 15)]);
        assert_eq!(report.findings[0].violation, Violation::NoSlot { hpa: Hpa(0x2000_0000) });
        assert_eq!(report.unchecked(Unchecked::NoHva), 15);
        // Its first and last page are one outside at either end.
        let Memslot { base, bytes, hva, .. } = slot.memslot;
        let shorter = Memslot {
            base: Gpa(base.raw() + K4),
            bytes: bytes - 2 * K4,
            hva: Hva(hva.raw() + K4),
            ..slot.memslot
        };
        world.slots.push(shorter.into());
        let report = world.verify();
        assert_eq!(broken(&report), [(1, 2)]);
        assert_eq!(report.findings.map_addresses(), [0, 15 * K4]);
        world.slots.push(slot);
        let found = only(&world.verify(), 1, K4);
        assert_eq!(found.violation, Violation::SlotsOverlap { first: Gpa(0), second: Gpa(K4) });
        assert!(found.path.is_empty());
    }
}

#[test]
fn i01_slots_may_overlap_in_any_way_and_each_is_named_once() {
    let mut world = World::empty(format(Kind::Ept));
    // The first holds the second and third; the fourth goes on from its middle; the fifth lies in both.
    for (base, pages) in [(0, 100), (10, 10), (50, 5), (60, 100), (70, 1)] {
        world.slots.push(slot(base * K4, pages * K4, 0x7f00_0000_0000 + base * K4));
    }
    let report = world.verify();
    assert_eq!(broken(&report), [(1, 4)]);
    let seconds: Vec<_> = report.findings.iter().map(|found| found.violation).collect();
    assert!(
        seconds.contains(&Violation::SlotsOverlap { first: Gpa(60 * K4), second: Gpa(70 * K4) }),
        "{report}"
    );
}

#[test]
fn i02_wrong_frame() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let leaf = world.leaf(3 * K4);
        world.flip(leaf, 1 << 40);
        let found = only(&world.verify(), 2, 3 * K4);
        let right = 0x2000_0000 + 5 * K4;
        let violation = Violation::Frame {
            at: Gpa(3 * K4),
            expected: HostPage::at(Hpa(right)),
            seen: Hpa(right | 1 << 40),
            wrong: 1,
        };
        assert_eq!(found.violation, violation);
        let path: Vec<_> = found.path.iter().map(|step| (step.level, step.index)).collect();
        assert_eq!(path, [(4, 0), (3, 0), (2, 0), (1, 3)]);
        assert_eq!(found.path[3].entry_address(), leaf);
        assert_eq!(found.path[3].entry, world.read(leaf));
    }
}

#[test]
fn i02_wrong_frame_inside_a_large_leaf() {
    for kind in KINDS {
        for (gpa, hva) in [(M2, 0x7f00_4000_0000), (G1, 0x7f40_0000_0000)] {
            let mut world = World::new(kind);
            // The host has moved two pages since.
            world.host.map(hva + 100 * K4, 0x6000_0000, 2 * K4);
            let found = only(&world.verify(), 2, gpa);
            let Violation::Frame { at, expected, wrong, .. } = found.violation else { panic!("{found}") };
            assert_eq!((at, wrong), (Gpa(gpa + 100 * K4), 2));
            assert_eq!(expected, HostPage::at(Hpa(0x6000_0000)));
        }
    }
}

#[test]
fn i02_the_host_has_nothing_there() {
    let mut world = World::new(Kind::Ept);
    world.host.set(0x7f00_0000_3000, HostPage::ABSENT);
    let found = only(&world.verify(), 2, 3 * K4);
    assert!(matches!(found.violation, Violation::Frame { expected: HostPage::ABSENT, .. }), "{found}");
}

#[test]
fn i02_what_the_host_does_not_tell_is_not_checked() {
    let world = World::new(Kind::Ept);
    let report = verify(&world.memory, &[Guest { host: &UnknownHost, ..world.guest() }]);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.coverage.frames, 0);
    assert_eq!(report.unchecked(Unchecked::HostUnknown), 535 + 512 + 262_144);
    // An array that covers a part of the first slot.
    let pages: Vec<_> = (4..7).map(|page| world.host.get(0x7f00_0000_0000 + page * K4)).collect();
    let host = HostPages { hva: Hva(0x7f00_0000_4000), pages: &pages };
    let report = verify(&world.memory, &[Guest { host: &host, ..world.guest() }]);
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.coverage.frames, 2, "page 5 is not mapped");
}

#[test]
fn i03_read_only_is_never_writable() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let leaf = world.leaf(4 * M2 + K4);
        world.flip(leaf, 2);
        let found = only(&world.verify(), 3, 4 * M2 + K4);
        let Violation::Rights { allowed, seen, limit } = found.violation else { panic!("{found}") };
        assert_eq!((seen, allowed, limit), (world.all(), seen - Rights::WRITE, Limit::ReadonlySlot));
        world.flip(leaf, 2);
        world.slots[1].memslot.readonly = true;
        let report = world.verify();
        assert_eq!(broken(&report), [(3, 1)], "the one of 2 MiB is writable: {report}");
    }
}

/// Rules X2 and X3: what lets a guest write without W.
#[test]
fn i03_read_only_is_not_writable_by_shadow_stacks_and_paging_writes_either() {
    let extensions = Ept {
        supervisor_shadow_stack: true,
        paging_write: true,
        sub_page_write: true,
        ..Ept::new(Levels::Four, EptCaps::all(), WIDTH)
    };
    let mut world = World::of(Format::ept(extensions));
    assert!(world.verify().is_clean());
    let leaf = world.leaf(4 * M2 + K4);
    for bit in [58, 60] {
        world.flip(leaf, 1 << bit);
        let found = only(&world.verify(), 3, 4 * M2 + K4);
        assert!(matches!(found.violation, Violation::Rights { limit: Limit::ReadonlySlot, .. }), "{found}");
        world.flip(leaf, 1 << bit);
    }
    world.flip(leaf, 1 << 61);
    let report = world.verify();
    assert_eq!((report.is_clean(), report.unchecked(Unchecked::SubPages)), (true, 1));
}

#[test]
fn i03_a_logged_page_is_writable_only_once_it_is_in_the_log() {
    for kind in KINDS {
        let mut world = World::new(kind);
        let leaf = world.leaf(5 * M2 + 2 * K4);
        world.flip(leaf, 2);
        let found = only(&world.verify(), 3, 5 * M2 + 2 * K4);
        assert!(matches!(found.violation, Violation::Rights { limit: Limit::DirtyLog, .. }), "{found}");
        world.slots[3].log = DirtyLog::Bitmap(&[]);
        assert_eq!(broken(&world.verify()), [(3, 3)]);
        world.slots[3].log = DirtyLog::Pml;
        assert!(world.verify().is_clean());
        world.slots[3].log = DirtyLog::Unknown;
        let report = world.verify();
        assert_eq!((report.is_clean(), report.unchecked(Unchecked::LogUnknown)), (true, 3));
    }
}

#[test]
fn i03_logged_leaves_are_4k() {
    let mut world = World::new(Kind::Ept);
    world.slots[1].memslot.log_dirty = true;
    world.slots[1].log = DirtyLog::Pml;
    let found = only(&world.verify(), 3, M2);
    assert_eq!(found.violation, Violation::LoggedLarge { size: PageSize::Size2M });
}

#[test]
fn i03_what_the_host_may_not_write_no_guest_may() {
    for gpa in [0, M2] {
        let mut world = World::new(Kind::Ept);
        let hva = if gpa == 0 { 0x7f00_0000_0000 } else { 0x7f00_4000_3000 };
        let page = world.host.get(hva);
        world.host.set(hva, page.read_only());
        let found = only(&world.verify(), 3, gpa);
        assert!(matches!(found.violation, Violation::Rights { limit: Limit::Host, .. }), "{found}");
        let leaf = world.leaf(gpa);
        world.flip(leaf, 2);
        assert!(world.verify().is_clean());
    }
}

#[test]
fn i04_a_large_leaf_stays_inside_its_slot() {
    for (gpa, size) in [(M2, M2), (G1, G1)] {
        for edge in [0, 1] {
            let mut world = World::new(Kind::Ept);
            let slot = &mut world.slots[if size == M2 { 1 } else { 4 }].memslot;
            if edge == 0 {
                slot.base = Gpa(slot.base.raw() + K4);
                slot.hva = Hva(slot.hva.raw() + K4);
                slot.bytes -= K4;
            } else {
                slot.bytes = size - K4;
            }
            let report = world.verify();
            let straddles: Vec<_> =
                report.findings.iter().filter(|found| found.violation.invariant().number() == 4).collect();
            let [found] = straddles[..] else { panic!("{report}") };
            let leaf = AddrRange::new(Gpa(gpa), size.into()).unwrap();
            let inside =
                AddrRange::new(Gpa(if edge == 0 { gpa + K4 } else { gpa }), (size - K4).into()).unwrap();
            assert_eq!(found.violation, Violation::Straddles { leaf, slot: inside });
            assert!(report.unchecked(Unchecked::NoHva) >= size / K4);
        }
    }
}

#[test]
fn i04_the_hva_of_a_large_leaf_is_aligned_like_it() {
    let mut world = World::new(Kind::Ept);
    let (old, new) = (0x7f00_4000_0000, 0x7f00_5000_3000);
    world.slots[1].memslot.hva = Hva(new);
    for offset in (0..2 * M2).step_by(K4 as usize) {
        let page = world.host.get(old + offset);
        world.host.set(new + offset, page);
    }
    let found = only(&world.verify(), 4, M2);
    assert_eq!(found.violation, Violation::Incongruent { size: PageSize::Size2M, seen: 0x3000 });
}

#[test]
fn i05_misconfigurations() {
    for (bits, set, reason) in [
        (0x7, 0x2, Misconfiguration::WriteWithoutRead),
        (0x7, 0x6, Misconfiguration::WriteWithoutRead),
        (0x38, 2 << 3, Misconfiguration::MemoryType(2)),
        (0x38, 3 << 3, Misconfiguration::MemoryType(3)),
        (0x38, 7 << 3, Misconfiguration::MemoryType(7)),
        (1 << 46, 1 << 46, Misconfiguration::ReservedBits(1 << 46)),
    ] {
        let mut world = World::new(Kind::Ept);
        let leaf = world.leaf(K4);
        world.write(leaf, world.read(leaf) & !bits | set);
        let found = only(&world.verify_without_counts(), 5, K4);
        assert_eq!(found.violation, Violation::Misconfigured { reason });
    }
    let mut world = World::new(Kind::Ept);
    let leaf = world.leaf(M2);
    world.flip(leaf, K4);
    let found = only(&world.verify_without_counts(), 5, M2);
    assert_eq!(found.violation, Violation::Misconfigured { reason: Misconfiguration::ReservedBits(K4) });
}

#[test]
fn i05_what_the_processor_lacks() {
    let mut world = World::new(Kind::Ept);
    world.roots[0].format = ept(EptCaps::all() - EptCaps::PAGE_1G, Levels::Four, true);
    only(&world.verify_without_counts(), 5, G1);
    world.roots[0].format = ept(EptCaps::all() - EptCaps::PAGE_2M, Levels::Four, true);
    only(&world.verify_without_counts(), 5, M2);
    world.roots[0].format = ept(EptCaps::all() - EptCaps::EXECUTE_ONLY, Levels::Four, true);
    let leaf = world.leaf(K4);
    world.flip(leaf, 0x3);
    let found = only(&world.verify_without_counts(), 5, K4);
    assert_eq!(found.violation, Violation::Misconfigured { reason: Misconfiguration::ExecuteOnly });
}

#[test]
fn i05_execute_only_is_well_formed_where_the_processor_has_it() {
    let mut world = World::new(Kind::Ept);
    let leaf = world.leaf(K4);
    world.flip(leaf, 0x3);
    assert!(world.verify().is_clean());
}

#[test]
fn i05_a_root_is_an_address() {
    for bits in [0x8, 1 << 46, 1 << 63] {
        let mut world = World::new(Kind::Npt);
        world.roots[0].root |= bits;
        let found = only(&world.verify_without_counts(), 5, 0);
        assert_eq!(found.violation, Violation::Root { root: world.roots[0].root, bits });
    }
}

#[test]
fn i06_pointers_to_tables_grant_everything() {
    for kind in KINDS {
        for level in [2, 3, 4] {
            let mut world = World::new(kind);
            let entry = world.entry(0, level);
            world.flip(entry, 2);
            let found = only(&world.verify(), 6, 0);
            let (expected, seen) = (world.all(), world.all() - Rights::WRITE);
            assert_eq!(found.violation, Violation::TableRights { expected, seen });
            assert_eq!(found.path.last().unwrap().entry_address(), entry);
            world.policy.tables_grant_all = false;
            assert!(world.verify().is_clean());
        }
    }
}

#[test]
fn i06_what_translates_nothing_is_zero_or_known() {
    for kind in KINDS {
        for (gpa, level) in [(5 * K4, 1), (100 * M2, 2), (5 * G1, 3), (1 << 39, 4)] {
            let mut world = World::new(kind);
            let entry = world.entry(gpa, level);
            let strict = world.policy;
            let set = |world: &mut World, value, policy| {
                world.write(entry, value);
                world.policy = policy;
                world.verify()
            };
            let found = only(&set(&mut world, 0xabc8_0000, strict), 6, gpa);
            assert_eq!(found.violation, Violation::NotZero { seen: 0xabc8_0000 });
            only(&set(&mut world, 1 << 63, strict), 6, gpa);
            only(&set(&mut world, 1 << 62, Policy::kvm(kind)), 6, gpa);
            let mut known = vec![1 << 63, 0x5a0, 1 << 63 | 0x5a0];
            match kind {
                Kind::Ept => known.extend([0x6 | 0xabc << 12, 1 << 54 | 1 << 56 | 1 << 11 | 0xabc << 12]),
                _ => known.push(1 << 51 | 0xabc << 12 | 0x1),
            }
            for value in known {
                let report = set(&mut world, value, Policy::kvm(kind));
                assert!(report.is_clean(), "{value:#x}: {report}");
                assert_eq!(report.coverage.software, 1);
            }
        }
    }
}

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
        let first = Place { guest: 0, root: 0, address: Gpa(0) };
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
            let first = Place { guest: 0, root: 0, address: Gpa(0) };
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
            let of = Place { guest: 0, root: 0, address: Gpa(0) };
            let expected = Violation::TableMapped { table: Hpa(table), level: 1, of };
            let found = report.findings.iter().find(|found| found.address == Gpa(at)).unwrap();
            assert_eq!(found.violation, expected);
            assert_eq!(found.path.last().unwrap().entry_address(), leaf);
        }
    }
}

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
        let other = Place { guest: 0, root: 0, address: Gpa(K4) };
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
    let found = report.findings.iter().find(|found| found.address != Gpa(K4)).unwrap();
    let other = Place { guest: 0, root: 0, address: Gpa(K4) };
    assert_eq!(
        (found.address, found.violation),
        (Gpa(G1 + 77 * K4), Violation::Alias { hpa: Hpa(frame), other })
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
        assert_eq!((found.guest, found.address), (1, Gpa(0)));
        let other = Place { guest: 0, root: 0, address: Gpa(0) };
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
    assert!(report.findings.iter().all(|found| found.root == 1 && found.address == Gpa(4 * K4)));
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

#[test]
fn i10_ram_and_devices_have_their_types() {
    for (kind, bits) in
        [(Kind::Ept, [1 << 6, 6 << 3]), (Kind::Npt, [1 << 3, 1 << 4]), (Kind::Ia32e, [1 << 7, 1 << 3])]
    {
        for bit in bits {
            let mut world = World::new(kind);
            let leaf = world.leaf(K4);
            world.flip(leaf, bit);
            let found = only(&world.verify(), 10, K4);
            let Violation::MemoryType { expected, seen } = found.violation else { panic!("{found}") };
            assert_eq!(expected, world.policy.ram);
            assert_ne!(seen, expected);
        }
        // What is a device's must not be cached.
        let mut world = World::new(kind);
        let page = world.host.get(0x7f00_4000_0000);
        for page in (0x7f00_4000_0000..).step_by(K4 as usize).take(512) {
            let device = world.host.get(page).device();
            world.host.set(page, device);
        }
        let found = only(&world.verify(), 10, M2);
        let violation = Violation::MemoryType { expected: world.policy.device, seen: world.policy.ram };
        assert_eq!((found.violation, page.is_device()), (violation, false));
        world.policy.device = world.policy.ram;
        assert!(world.verify().is_clean());
    }
    let mut world = World::new(Kind::Ept);
    world.policy.ram = Caching::Ept { memory_type: MemoryType::WriteBack, ignore_pat: false };
    assert_eq!(broken(&world.verify()), [(10, 537)]);
}

#[test]
fn i10_nested_tables_have_u_everywhere() {
    let mut world = World::new(Kind::Npt);
    let leaf = world.leaf(K4);
    world.flip(leaf, 4);
    assert_eq!(only(&world.verify(), 10, K4).violation, Violation::Supervisor);
    let mut world = World::new(Kind::Ia32e);
    let leaf = world.leaf(K4);
    world.flip(leaf, 4);
    assert!(world.verify().is_clean());
}

#[test]
fn i10_the_encryption_bit_is_constant() {
    let mut world = World::new(Kind::Npt);
    let bit = 1 << 47;
    for frame in world.frames() {
        for entry in (frame.raw()..).step_by(8).take(512) {
            let value = world.read(entry);
            world.write(entry, if value == 0 { 0 } else { value | bit });
        }
    }
    world.policy.encryption = bit;
    let report = world.verify();
    assert!(report.is_clean(), "{report}");
    assert_eq!(report.coverage.leaves, [[535, 1, 1]]);
    for (gpa, level) in [(K4, 1), (M2, 2), (G1, 3), (0, 4)] {
        let entry = world.entry(gpa, level);
        world.flip(entry, bit);
        let found = only(&world.verify(), 10, gpa);
        assert_eq!(found.violation, Violation::Encryption { expected: bit, seen: 0 });
        world.flip(entry, bit);
    }
}

#[test]
fn i11_dirty_implies_accessed() {
    for (kind, accessed) in [(Kind::Ept, 1 << 8), (Kind::Npt, 1 << 5), (Kind::Ia32e, 1 << 5)] {
        for gpa in [K4, M2, G1] {
            let mut world = World::new(kind);
            let leaf = world.leaf(gpa);
            world.flip(leaf, accessed);
            assert!(world.verify().is_clean());
            world.flip(leaf, accessed << 1);
            assert!(world.verify().is_clean());
            world.flip(leaf, accessed);
            assert_eq!(only(&world.verify(), 11, gpa).violation, Violation::DirtyNotAccessed);
            world.policy = Policy::kvm(kind);
            assert!(world.verify().is_clean());
        }
    }
    let mut world = World::of(ept(EptCaps::all(), Levels::Four, false));
    let leaf = world.leaf(K4);
    world.flip(leaf, 1 << 9);
    assert!(world.verify().is_clean(), "without flags the bits are ignored");
}

#[test]
fn i12_leaf_counts() {
    let mut world = World::new(Kind::Ept);
    world.leaves = Some([535, 2, 1]);
    let found = only(&world.verify(), 12, 0);
    assert_eq!(found.violation, Violation::LeafCount { size: PageSize::Size2M, expected: 2, seen: 1 });
    world.leaves = None;
    let report = world.verify();
    assert_eq!((report.is_clean(), report.unchecked(Unchecked::NoCounts)), (true, 1));
}

#[test]
fn i13_i14_are_reported_as_not_checked() {
    let report = World::new(Kind::Ept).verify();
    assert_eq!((report.unchecked(Unchecked::Caches), report.unchecked(Unchecked::ShadowTables)), (1, 1));
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

#[test]
fn what_is_not_kept_is_counted() {
    let mut world = World::new(Kind::Ept);
    world.slots.clear();
    let guests = [world.guest()];
    for most in [0, 1, 7] {
        let report = ept::verify::verify(&world.memory, &guests, ram(), most).unwrap();
        assert_eq!((report.findings.len(), report.total()), (most, 537));
        let addresses: Vec<_> = (0..8).filter(|&page| page != 5).map(|page| page * K4).take(most).collect();
        assert_eq!(report.findings.map_addresses(), addresses);
        assert!(report.to_string().contains(&format!("and {} more", 537 - most)));
    }
}

#[test]
fn work_that_nobody_has_done_is_not_passed() {
    let world = World::new(Kind::Ept);
    let guests = [world.guest()];
    let verifier = Verifier::new(&world.memory, &guests, ram(), 10).unwrap();
    assert_eq!(verifier.report([]).unchecked(Unchecked::Unfinished), 7);
}

#[test]
fn a_table_that_changes_meanwhile_is_not_passed() {
    let world = World::new(Kind::Ept);
    let guests = [world.guest()];
    let verifier = Verifier::new(&world.memory, &guests, ram(), 10).unwrap();
    world.memory.write_entry(world.entry(0, 2), 0).unwrap();
    let report = verifier.report([verifier.work()]);
    assert_eq!(report.unchecked(Unchecked::Changed), 1);
}

#[test]
fn input_that_makes_no_sense_is_refused() {
    let mut world = World::new(Kind::Ept);
    for (base, bytes, hva) in [
        (0, 0, 0),
        (1, K4, 0),
        (0, K4, 8),
        (0, 100, 0),
        (u64::MAX - 0xfff, 2 * K4, 0),
        (0, 2 * K4, u64::MAX - 0xfff),
    ] {
        world.slots = vec![slot(base, bytes, hva)];
        let guests = [world.guest()];
        let refused = Verifier::new(&world.memory, &guests, ram(), 1).map(|_| ()).unwrap_err();
        assert_eq!(refused, Error::Slot { base: Gpa(base), bytes });
    }
    world.slots.clear();
    let range = AddrRange::inclusive(Hpa(0), Hpa(u64::MAX)).unwrap();
    let guests = [world.guest()];
    let refused = Verifier::new(&world.memory, &guests, range, 1).map(|_| ());
    assert_eq!(refused.unwrap_err(), Error::HostRam { range });
    for format in [Format::pae(Pae { max_phy_addr: WIDTH, no_execute: true }), legacy()] {
        world.roots[0] = Paging::new(format, 0);
        let guests = [world.guest()];
        let refused = Verifier::new(&world.memory, &guests, ram(), 1).map(|_| ());
        assert_eq!(refused.unwrap_err(), Error::Unverifiable { kind: format.kind() });
    }
    let mut world = World::new(Kind::Ept);
    world.policy.ram = Caching::Pat(0);
    let guests = [world.guest()];
    assert_eq!(Verifier::new(&world.memory, &guests, ram(), 1).map(|_| ()).unwrap_err(), Error::Caching);
}

fn legacy() -> Format {
    Format::legacy32(Legacy32 { page_4m: true, pse_36: None })
}

impl World {
    /// Where an entry is broken, the leaf below it is missing too: that is not what the test is about.
    fn verify_without_counts(&self) -> ept::verify::Report {
        verify(&self.memory, &[Guest { leaves: None, ..self.guest() }])
    }
}

trait Addresses {
    fn map_addresses(&self) -> Vec<u64>;
}

impl Addresses for Vec<ept::verify::Finding> {
    fn map_addresses(&self) -> Vec<u64> {
        self.iter().map(|found| found.address.raw()).collect()
    }
}
