//! Invariants 1 to 4 and 10 to 12: what leaves map, what they grant, and how many there are.

use ept::mmu::Memslot;
use ept::verify::{DirtyLog, Guest, HostPage, HostPages, Limit, Policy, Unchecked, UnknownHost, Violation};
use ept::{Caching, Ept, EptCaps, Format, Kind, Levels, MemoryType, Rights};
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};

use crate::world::*;

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
        assert_eq!(addresses(&report), [0, 15 * K4]);
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
    let large = Violation::LoggedLarge { size: PageSize::Size2M };
    assert_eq!(only(&world.verify(), 3, M2).violation, large);
    // All of it is in the log, and then some of it is not.
    world.slots[1].log = DirtyLog::Bitmap(&[u64::MAX; 8]);
    assert!(world.verify().is_clean());
    world.slots[1].log = DirtyLog::Bitmap(&[u64::MAX; 7]);
    assert_eq!(only(&world.verify(), 3, M2).violation, large);
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
