//! Invariants 5 and 6: entries that are malformed, or say what they should not.

use ept::verify::{Policy, Violation};
use ept::{EptCaps, Format, Ia32e, Kind, Levels, Misconfiguration, Rights};

use crate::world::*;

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
fn i05_no_execute_is_reserved_where_the_processor_lacks_it() {
    for gpa in [K4, M2, G1] {
        let processor = Ia32e { no_execute: false, ..Ia32e::new(Levels::Four, WIDTH) };
        for format in [Format::ia32e(processor), Format::npt(processor)] {
            let mut world = World::of(format);
            assert!(world.verify().is_clean());
            let leaf = world.leaf(gpa);
            world.flip(leaf, 1 << 63);
            let found = only(&world.verify_without_counts(), 5, gpa);
            let reason = Misconfiguration::ReservedBits(1 << 63);
            assert_eq!(found.violation, Violation::Misconfigured { reason });
        }
    }
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
