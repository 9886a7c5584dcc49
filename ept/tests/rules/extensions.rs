//! EPT's extensions and what a violation tells, over two-dimensional walks made by hand.

use ept::{
    Access, Caching, Controls, Cr3, Ept, EptCaps, Fault, Flags, Format, Ia32e, Kind, Levels, MaxPhyAddr,
    MemoryType, Misconfiguration, NestedFault, NestedWalk, PageFaultCode, Pat, PatType, PhysMemory,
    Qualification, Rights, effective_memory_type, nested_pdptes, nested_walk, walk,
};
use memory_model::{Gpa, Gva, PageSize};

use crate::nested::{DATA, FINAL, GVA, RAM, TABLE, World, ept, violation, world, world_of};

const PLAIN: Ept = Ept::new(Levels::Four, EptCaps::all(), MaxPhyAddr::MAX);
const GUEST: Ia32e = Ia32e::new(Levels::Four, MaxPhyAddr::MAX);
const GPA: Gpa = Gpa(DATA + 0x123);

fn with(ept: Ept) -> World {
    world_of(Format::ept(ept), GUEST, PageSize::Size4K)
}

/// Bits of the second level's leaf for the data.
fn set_data(world: &World, set: u64, clear: u64) {
    world.set_second_leaf(GPA, |leaf| leaf & !clear | set);
}

fn final_violation(bits: Qualification) -> Result<ept::NestedLeaf, NestedFault> {
    Err(NestedFault::Final { gpa: GPA, fault: violation(bits | FINAL) })
}

#[test]
fn v1_bits_9_to_11_tell_what_the_guest_grants_on_the_final_access_alone() {
    let told = |set: &dyn Fn(&World)| {
        let mut world = ept();
        set(&world);
        world.unmap(GPA);
        match world.walk(Access::READ, Flags::Keep).outcome {
            Err(NestedFault::Final { fault: Fault::EptViolation { qualification }, .. }) => {
                qualification.bits() >> 9
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(told(&|_| {}), 0b011);
    assert_eq!(told(&|world| world.set_guest_entry(3, |entry| entry & !4)), 0b010, "supervisor");
    assert_eq!(told(&|world| world.set_guest_entry(2, |entry| entry & !2)), 0b001, "read-only");
    assert_eq!(told(&|world| world.set_guest_entry(4, |entry| entry | 1 << 63)), 0b111, "no-execute");

    let mut world = ept();
    let gpa = world.guest_entry(2);
    world.unmap(gpa);
    let fault = violation(Qualification::READ | TABLE);
    assert_eq!(world.walk(Access::READ, Flags::Keep).outcome, Err(NestedFault::Table { gpa, fault }));

    // Without paging: 1, 1, 0. Without the capability: nothing.
    let off = |ept: Ept| {
        let mut world = with(ept);
        world.unmap(GPA);
        nested_walk(&world.memory, None, &world.second, Gva(GPA.raw()), Access::READ, Flags::Keep).outcome
    };
    assert_eq!(off(PLAIN), final_violation(Qualification::READ));
    let silent = Ept { caps: EptCaps::all() - EptCaps::ADVANCED_EXIT_INFO, ..PLAIN };
    let bits = Qualification::READ | Qualification::LINEAR_VALID | Qualification::FINAL;
    assert_eq!(off(silent), Err(NestedFault::Final { gpa: GPA, fault: violation(bits) }));
}

#[test]
fn v2_bit_63_of_the_absent_entry_or_of_the_leaf_decides() {
    let world = ept();
    let ended = |access| world.walk(access, Flags::Keep).is_convertible();
    assert!(!ended(Access::READ), "no violation at all");
    set_data(&world, 0, 2);
    assert!(ended(Access::WRITE));
    set_data(&world, 1 << 63, 0);
    assert!(!ended(Access::WRITE));
    set_data(&world, 0, 1 << 63 | 7);
    assert!(ended(Access::READ), "not present");
    set_data(&world, 1 << 63, 7);
    assert!(!ended(Access::READ));
    // In a pointer to a table bit 63 says nothing.
    let root = world.memory.read_entry(world.second.root).unwrap();
    world.memory.write_entry(world.second.root, root | 1 << 63).unwrap();
    set_data(&world, 5, 1 << 63);
    assert!(ended(Access::WRITE));
    let single = walk(&world.memory, &world.second, GPA.raw(), Access::WRITE, Flags::Keep);
    assert!(single.is_convertible());
}

#[test]
fn m8_a_misconfiguration_is_never_convertible() {
    let world = ept();
    set_data(&world, 2, 5);
    let walk = world.walk(Access::READ, Flags::Keep);
    let fault = Fault::EptMisconfiguration { reason: Misconfiguration::WriteWithoutRead };
    assert_eq!((walk.outcome, walk.is_convertible()), (Err(NestedFault::Final { gpa: GPA, fault }), false));
}

#[test]
fn x1_xu_is_for_user_mode_addresses_and_x_for_supervisor_mode_ones() {
    const X: u64 = 1 << 2;
    const XU: u64 = 1 << 10;
    for (mode_based_execute, user_page) in [(true, true), (true, false), (false, true), (false, false)] {
        for set in [0, X, XU, X | XU] {
            let world = with(Ept { mode_based_execute, ..PLAIN });
            // Tables that grant both, so that the leaf decides.
            for step in walk(&world.memory, &world.second, GPA.raw(), Access::READ, Flags::Keep).path.iter() {
                world.memory.write_entry(step.entry_address(), step.entry | XU).unwrap();
            }
            set_data(&world, set, X | XU);
            if !user_page {
                world.set_guest_entry(1, |entry| entry & !4);
            }
            let needed = if mode_based_execute && user_page { XU } else { X };
            // Who fetches does not matter, only the guest's U.
            let access = if user_page { Access::FETCH.by_user() } else { Access::FETCH };
            for access in [access, Access::FETCH] {
                let outcome = world.walk(access, Flags::Keep).outcome;
                let context = format!("mode-based {mode_based_execute}, user page {user_page}, {set:#x}");
                assert_eq!(outcome.is_ok(), set & needed != 0, "{context}");
                if let Err(fault) = outcome {
                    let NestedFault::Final { fault: Fault::EptViolation { qualification }, .. } = fault
                    else {
                        panic!("{fault}")
                    };
                    let granted = qualification.bits() >> 5 & 3;
                    let expected =
                        u64::from(set & X != 0) | u64::from(mode_based_execute && set & XU != 0) << 1;
                    assert_eq!(granted, expected, "{context}");
                }
            }
        }
    }
}

#[test]
fn x1_without_paging_every_address_is_one_of_user_mode() {
    let world = with(Ept { mode_based_execute: true, ..PLAIN });
    let fetch = || {
        nested_walk(&world.memory, None, &world.second, Gva(GPA.raw()), Access::FETCH, Flags::Keep).outcome
    };
    assert!(fetch().is_err(), "X alone");
    for step in walk(&world.memory, &world.second, GPA.raw(), Access::READ, Flags::Keep).path.iter() {
        world.memory.write_entry(step.entry_address(), step.entry | 1 << 10).unwrap();
    }
    assert!(fetch().is_ok());
}

#[test]
fn x2_a_supervisor_shadow_stack_access_needs_bit_60_and_w_above_the_leaf() {
    let on = Ept { supervisor_shadow_stack: true, ..PLAIN };
    let ask = |ept, leaf: (u64, u64), upper_clear: u64, access: Access| {
        let world = with(ept);
        set_data(&world, leaf.0, leaf.1);
        let root = world.memory.read_entry(world.second.root).unwrap();
        world.memory.write_entry(world.second.root, root & !upper_clear).unwrap();
        walk(&world.memory, &world.second, GPA.raw(), access, Flags::Keep).outcome.map(|leaf| leaf.address)
    };
    let write = Access::WRITE.to_shadow_stack();
    assert!(ask(on, (1 << 60, 2), 0, write).is_ok(), "W of the leaf does not count");
    assert!(ask(on, (1 << 60, 0), 2, write).is_err(), "W above it does");
    assert!(ask(on, (1 << 60, 3), 0, write).is_err(), "R counts");
    let granted = Qualification::READABLE | Qualification::WRITABLE | Qualification::EXECUTABLE;
    let does = Qualification::WRITE | Qualification::SHADOW_STACK;
    assert_eq!(ask(on, (0, 0), 0, write), Err(violation(does | granted)));
    // Bit 14 copies bit 60, whatever the access; without EPTP bit 7 the bit means nothing.
    let sss = Qualification::SUPERVISOR_SHADOW_STACK;
    let read_only = Qualification::READABLE | Qualification::EXECUTABLE;
    assert_eq!(
        ask(on, (1 << 60, 2), 0, Access::WRITE),
        Err(violation(Qualification::WRITE | read_only | sss))
    );
    assert_eq!(ask(PLAIN, (1 << 60, 2), 0, write), Err(violation(does | read_only)));
    assert!(ask(PLAIN, (0, 0), 0, write).is_ok());
    // User shadow-stack accesses are ordinary ones.
    assert!(ask(on, (0, 0), 0, write.by_user()).is_ok());
}

#[test]
fn x3_paging_write_lets_guest_flag_updates_pass_without_w() {
    for (paging_write, accessed_dirty) in [(true, true), (true, false), (false, true), (false, false)] {
        let world = with(Ept { paging_write, accessed_dirty, ..PLAIN });
        let gpa = world.guest_entry(1);
        world.set_second_leaf(gpa, |leaf| leaf & !2 | 1 << 58);
        let walk = world.walk(Access::WRITE, Flags::Set);
        if paging_write {
            assert_eq!(walk.outcome.unwrap().gpa, GPA);
            let leaf = walk.guest.last().unwrap();
            let entry = world.memory.read_entry(leaf.entry_address() + RAM).unwrap();
            assert_eq!(entry & 0x60, 0x60, "the guest's A and D");
        } else {
            assert!(matches!(walk.outcome, Err(NestedFault::Table { gpa: at, .. }) if at == gpa));
        }
        // The right is for the processor's walks alone.
        set_data(&world, 1 << 58, 2);
        let data = ept::walk(&world.memory, &world.second, GPA.raw(), Access::WRITE, Flags::Keep);
        assert!(data.outcome.is_err());
    }
}

#[test]
fn m5_paging_write_without_r_is_misconfigured() {
    let on = Format::ept(Ept { paging_write: true, ..PLAIN });
    let off = Format::ept(PLAIN);
    let reason = Misconfiguration::PagingWriteWithoutRead;
    for (level, frame) in [(1, 0x1000), (2, 0x20_0080), (3, 0x4000_0080)] {
        let entry = frame | 1 << 58 | 0x30 | 0b100;
        assert_eq!(on.decode(level, entry), ept::Entry::Malformed(reason));
        assert!(matches!(off.decode(level, entry), ept::Entry::Leaf(..)));
        assert!(matches!(on.decode(level, entry & !(1 << 58)), ept::Entry::Leaf(..)));
        assert!(matches!(on.decode(level, entry | 1), ept::Entry::Leaf(..)));
    }
    assert!(matches!(on.decode(2, 0x1004 | 1 << 58), ept::Entry::Table(_)), "leaves alone");
}

#[test]
fn x4_guest_paging_verification_wants_bit_58_under_every_guest_table() {
    let on = Ept { paging_write: true, guest_paging_verification: true, ..PLAIN };
    let world = with(on);
    let tables: Vec<_> = (1..=4).map(|level| world.guest_entry(level)).collect();
    let read = || world.walk(Access::READ, Flags::Keep).outcome;
    assert!(read().is_ok(), "nothing asks for it");
    set_data(&world, 1 << 57, 0);
    for &gpa in &tables {
        let granted = Qualification::READABLE | Qualification::WRITABLE | Qualification::EXECUTABLE;
        let bits = Qualification::READ | granted | Qualification::GUEST_PAGING_VERIFICATION;
        assert_eq!(read(), final_violation(bits));
        world.set_second_leaf(gpa, |leaf| leaf | 1 << 58);
    }
    assert!(read().is_ok());
    let off = with(Ept { paging_write: true, ..PLAIN });
    set_data(&off, 1 << 57, 0);
    assert!(off.walk(Access::READ, Flags::Keep).outcome.is_ok());
}

#[test]
fn x5_the_depths_are_independent() {
    for (guest, second, references) in
        [(Levels::Four, Levels::Five, 29), (Levels::Five, Levels::Four, 29), (Levels::Five, Levels::Five, 35)]
    {
        let format = Format::ept(Ept { levels: second, ..PLAIN });
        let world = world_of(format, Ia32e::new(guest, MaxPhyAddr::MAX), PageSize::Size4K);
        let NestedWalk { outcome, references: counted, .. } = world.walk(Access::READ, Flags::Keep);
        assert_eq!((outcome.unwrap().gpa, counted), (GPA, references), "rule D1");
    }
}

#[test]
fn a2_page_directory_pointers_are_loaded_by_reads_without_a_linear_address() {
    let mut world = world(Kind::Ept, Levels::Four, PageSize::Size4K, true);
    let cr3 = Cr3::new(0x5000 + 0x20, MaxPhyAddr::MAX).unwrap();
    for (index, value) in [0x6001, 0, 0x7001, 0x8001].into_iter().enumerate() {
        world.memory.write_entry(RAM + 0x5020 + 8 * index as u64, value).unwrap();
    }
    world.protect(Gpa(0x5000), Rights::READ);
    assert_eq!(nested_pdptes(&world.memory, &world.second, cr3, Flags::Set), Ok([0x6001, 0, 0x7001, 0x8001]));
    let leaf = walk(&world.memory, &world.second, 0x5000, Access::READ, Flags::Keep).outcome.unwrap();
    assert_eq!(leaf.entry >> 8 & 3, 1, "A, and no D");
    world.unmap(Gpa(0x5000));
    let refused = NestedFault::Table { gpa: Gpa(0x5020), fault: violation(Qualification::READ) };
    assert_eq!(nested_pdptes(&world.memory, &world.second, cr3, Flags::Set), Err(refused));
}

#[test]
fn mt1_ept_and_pat_types_combine_as_the_table_says() {
    use PatType::*;
    let columns = [Uncacheable, UncacheableMinus, WriteCombining, WriteThrough, WriteBack, WriteProtected];
    let rows = [
        (MemoryType::Uncacheable, ["UC", "UC", "WC", "UC", "UC", "UC"]),
        (MemoryType::WriteCombining, ["UC", "WC", "WC", "UC", "WC", "UC"]),
        (MemoryType::WriteThrough, ["UC", "UC", "WC", "WT", "WT", "WP"]),
        (MemoryType::WriteProtected, ["UC", "WC", "WC", "WT", "WP", "WP"]),
        (MemoryType::WriteBack, ["UC", "UC", "WC", "WT", "WB", "WP"]),
    ];
    let named = |name: &str| match name {
        "UC" => MemoryType::Uncacheable,
        "WC" => MemoryType::WriteCombining,
        "WT" => MemoryType::WriteThrough,
        "WP" => MemoryType::WriteProtected,
        _ => MemoryType::WriteBack,
    };
    for (ept, row) in rows {
        for (pat, expected) in columns.into_iter().zip(row) {
            assert_eq!(effective_memory_type(ept, false, pat, false), named(expected), "{ept:?} {pat:?}");
            assert_eq!(effective_memory_type(ept, true, pat, false), ept, "IPAT");
            assert_eq!(effective_memory_type(ept, false, pat, true), MemoryType::Uncacheable, "CR0.CD");
        }
    }
}

#[test]
fn mt1_the_pat_index_of_the_guests_leaf_selects_its_type() {
    let pat = Pat::new(0x0007_0406_0007_0406).unwrap();
    assert_eq!((pat, Pat::new(0x02), Pat::new(0x0800)), (Pat::RESET, None, None));
    let world = ept();
    set_data(&world, 0, 1 << 6);
    let found = || world.walk(Access::READ, Flags::Keep).outcome.unwrap();
    assert_eq!(found().memory_type(pat, false), Some(MemoryType::WriteBack));
    world.set_guest_entry(1, |entry| entry | 1 << 3);
    assert_eq!(found().memory_type(pat, false), Some(MemoryType::WriteThrough));
    world.set_guest_entry(1, |entry| entry & !(1 << 3) | 1 << 4);
    assert_eq!(found().memory_type(pat, false), Some(MemoryType::Uncacheable), "UC-");
    let other = Pat::new(0x0601_0406_0007_0406).unwrap();
    world.set_guest_entry(1, |entry| entry | 1 << 7);
    assert_eq!(found().memory_type(other, false), Some(MemoryType::WriteCombining), "index 6");
    set_data(&world, 1 << 6, 0);
    assert_eq!(found().memory_type(other, false), Some(MemoryType::WriteBack), "IPAT");
    assert_eq!(found().memory_type(other, true), Some(MemoryType::Uncacheable));
}

/// Rules MT2 and MT3: the type in the EPTP is that of the tables; KVM maps RAM as write back with IPAT.
#[test]
fn mt2_mt3_the_type_of_a_page_is_the_leafs() {
    let ept = Caching::Ept { memory_type: MemoryType::WriteBack, ignore_pat: true };
    assert_eq!(Caching::EPT_RAM, ept);
    let width = MaxPhyAddr::MAX;
    let world = crate::nested::ept();
    for memory_type in [0, 6] {
        let eptp = ept::Eptp::new(world.second.root | 3 << 3 | memory_type, EptCaps::all(), width).unwrap();
        let paging = ept::Paging::ept(eptp, EptCaps::all(), width);
        let leaf = walk(&world.memory, &paging, DATA, Access::READ, Flags::Keep).outcome.unwrap();
        assert_eq!(leaf.caching(), ept);
    }
}

/// Rules N1, N3, N6: NPT has faults and no misconfigurations; KVM's MMIO mark is a reserved bit; depth as the host's.
#[test]
fn n1_n3_n6_a_reserved_bit_in_npt_is_a_page_fault_at_any_depth() {
    for levels in [Levels::Four, Levels::Five] {
        let narrow = Ia32e::new(levels, MaxPhyAddr::new(46).unwrap());
        let mut world = world_of(Format::npt(narrow), GUEST, PageSize::Size4K);
        world.set_second_leaf(GPA, |leaf| leaf | 1 << 51);
        for (access, smep, code) in [
            (Access::READ, false, 0x1_0000_000d),
            (Access::FETCH, false, 0x1_0000_001d),
            (Access::FETCH, true, 0x1_0000_001d),
        ] {
            world.second.controls.set(Controls::SMEP, smep);
            let fault = Fault::PageFault { code: PageFaultCode::from_bits_retain(code) };
            let refused = Err(NestedFault::Final { gpa: GPA, fault });
            assert_eq!(world.walk(access, Flags::Keep).outcome, refused, "{levels:?}");
        }
    }
    // Neither NX nor SMEP in the host: a fetch does not show. The guest's own NX has no say.
    let without = Ia32e { no_execute: false, ..GUEST };
    let mut world = world_of(Format::npt(without), GUEST, PageSize::Size4K);
    world.unmap(GPA);
    let fault = Fault::PageFault { code: PageFaultCode::from_bits_retain(0x1_0000_0004) };
    assert_eq!(world.walk(Access::FETCH, Flags::Keep).outcome, Err(NestedFault::Final { gpa: GPA, fault }));
    assert_eq!(GVA.raw() & 0xfff, GPA.raw() & 0xfff);
}
