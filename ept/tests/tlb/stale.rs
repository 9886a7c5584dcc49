//! Changes that a processor does not see, each until the instruction that the rules name.

use ept::tlb::{InvEpt, InvVpid, LinearSpace, Tlb};
use ept::{Access, Fault, Flags, FrameAllocator, NestedFault, PageFaultCode, Paging, Rights, SparseMemory};
use memory_model::Hpa;

use crate::world::{CAPS, DATA, OTHER_RAM, PAGE, RAM, WIDTH, World, page, world};

const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const GLOBAL: u64 = 1 << 8;

fn vpid(vpid: u16) -> LinearSpace {
    LinearSpace { vpid, ..LinearSpace::default() }
}

fn is_final<T>(outcome: Result<T, NestedFault>) -> bool {
    matches!(outcome, Err(NestedFault::Final { fault: Fault::EptViolation { .. }, .. }))
}

fn page_fault<T>(outcome: Result<T, NestedFault>) -> Option<PageFaultCode> {
    match outcome {
        Err(NestedFault::Guest(Fault::PageFault { code })) => Some(code),
        _ => None,
    }
}

#[test]
fn a_second_access_reads_nothing_and_a_neighbour_two_entries() {
    let mut world = world(0);
    (0..2).for_each(|n| world.mark(page(n)));
    // Not 24: after the first guest entry the EPT's lowest table is known. 4 + 1, then 1 + 1 for each of the
    // guest's other levels, and 1 for the page.
    assert_eq!(world.reads(|world| _ = world.read(page(0))), 12);
    assert_eq!(world.reads(|world| assert_eq!(world.read(page(0)), RAM + DATA)), 0);
    // The guest's PTE, whose page is known, and the EPT's, whose table is.
    assert_eq!(world.reads(|world| assert_eq!(world.read(page(1)), RAM + DATA + PAGE)), 2);
}

#[test]
fn d_is_set_by_the_first_write_though_the_page_was_read_before() {
    let mut world = world(0);
    world.read(page(0));
    let (leaf, pte) = (world.ept_leaf(DATA), world.guest_entry(page(0), 1));
    assert_eq!((world.entry(leaf) & DIRTY, world.entry(pte) & 1 << 6), (0, 0));
    world.access(page(0), Access::WRITE).unwrap();
    assert_eq!((world.entry(leaf) & DIRTY, world.entry(pte) & 1 << 6), (DIRTY, 1 << 6));
    assert_eq!(world.reads(|world| _ = world.access(page(0), Access::WRITE).unwrap()), 0);
}

#[test]
fn a_look_is_not_remembered() {
    let mut world = world(0);
    let World { memory, guest, second, tlb, .. } = &mut world;
    for _ in 0..2 {
        memory.reads.set(0);
        let space = LinearSpace::default();
        tlb.nested(memory, Some(guest), second, space, page(0), Access::READ, Flags::Keep).unwrap();
        assert_eq!(memory.reads.get(), 24);
    }
}

#[test]
fn m7_absent_and_malformed_entries_are_not_remembered() {
    let mut world = world(0);
    let leaf = world.ept_leaf(DATA);
    let good = world.entry(leaf);
    for broken in [0, good & !1] {
        world.change(leaf, |_| broken);
        assert!(world.access(page(0), Access::READ).is_err());
        world.change(leaf, |_| good);
        assert_eq!(world.read(page(0)), RAM + DATA);
        world.tlb.invept(InvEpt::All);
    }
}

/// Each change of the rule's list: what it does to a leaf, and what an access then finds.
#[test]
fn iv1_changes_of_a_leaf_are_seen_after_invept() {
    type Change = fn(u64) -> u64;
    type Shows = fn(&mut World) -> bool;
    let changes: [(&str, Change, Shows); 4] = [
        ("W taken away", |entry| entry & !2, |world| is_final(world.access(page(0), Access::WRITE))),
        ("no longer present", |_| 0, |world| is_final(world.access(page(0), Access::READ))),
        ("another frame", |entry| entry + PAGE, |world| world.read(page(0)) == RAM + DATA + PAGE),
        (
            "another memory type",
            |entry| entry & !(0x7 << 3),
            |world| {
                let leaf = world.access(page(0), Access::READ).unwrap().second;
                leaf.caching()
                    == ept::Caching::Ept { memory_type: ept::MemoryType::Uncacheable, ignore_pat: true }
            },
        ),
    ];
    for (name, change, shows) in changes {
        let mut world = world(0);
        world.access(page(0), Access::WRITE).unwrap();
        world.change(world.ept_leaf(DATA), change);
        assert!(!shows(&mut world), "{name}: seen at once");
        world.tlb.invept(InvEpt::Single(world.eptp));
        assert!(shows(&mut world), "{name}: not seen after INVEPT");
    }
}

#[test]
fn iv1_a_large_page_in_place_of_a_table_is_seen_after_invept() {
    let mut world = world(0);
    world.read(page(0));
    let walk = ept::walk(&world.memory, &world.second, DATA, Access::READ, Flags::Keep);
    let pde = walk.path[2].entry_address();
    world.change(pde, |_| OTHER_RAM | 0x7 | 6 << 3 | 1 << 7);
    // The neighbour has no page yet, but its table is remembered.
    assert_eq!(world.read(page(1)), RAM + DATA + PAGE);
    world.tlb.invept(InvEpt::Single(world.eptp));
    assert_eq!(world.read(page(1)), OTHER_RAM + DATA + PAGE);
}

#[test]
fn a3_cleared_flags_are_set_again_after_invept_alone() {
    let mut world = world(0);
    world.access(page(0), Access::WRITE).unwrap();
    let leaf = world.ept_leaf(DATA);
    world.change(leaf, |entry| entry & !(ACCESSED | DIRTY));
    world.access(page(0), Access::WRITE).unwrap();
    assert_eq!(world.entry(leaf) & (ACCESSED | DIRTY), 0, "a write that leaves no trace");
    world.tlb.invept(InvEpt::Single(world.eptp));
    world.access(page(0), Access::WRITE).unwrap();
    assert_eq!(world.entry(leaf) & (ACCESSED | DIRTY), ACCESSED | DIRTY);
}

#[test]
fn iv1_iv3_a_root_with_other_eptp_bits_shares_what_is_remembered() {
    let mut world = world(0);
    world.access(page(0), Access::WRITE).unwrap();
    let leaf = world.ept_leaf(DATA);
    let dirty = world.entry(leaf) & DIRTY;
    assert_eq!(dirty, DIRTY);
    // The same root without accessed and dirty flags, and W gone: the old mapping is used.
    world.change(leaf, |entry| entry & !2);
    let plain = ept::Eptp::for_root(world.eptp.root(), ept::Levels::Four, false, CAPS, WIDTH).unwrap();
    world.second = Paging::ept(plain, CAPS, WIDTH);
    assert!(world.access(page(0), Access::WRITE).is_ok());
    world.tlb.invept(InvEpt::Single(plain));
    assert!(is_final(world.access(page(0), Access::WRITE)));
}

#[test]
fn iv2_a_new_grant_needs_no_invept_and_costs_one_violation_at_most() {
    let mut world = world(0);
    let leaf = world.ept_leaf(DATA);
    // The guest's own D is set, so that nothing sends a write to the tables but the EPT's rights.
    world.access(page(0), Access::WRITE).unwrap();
    world.change(leaf, |entry| entry & !2);
    world.tlb.invept(InvEpt::All);
    world.read(page(0));
    world.change(leaf, |entry| entry | 2);
    // The old rights are remembered, and the violation drops them.
    assert!(is_final(world.access(page(0), Access::WRITE)));
    assert!(world.access(page(0), Access::WRITE).is_ok());
}

#[test]
fn iv2_what_was_absent_needs_no_invept() {
    let mut world = world(0);
    let leaf = world.ept_leaf(DATA);
    let good = world.entry(leaf);
    world.change(leaf, |_| 0);
    assert!(is_final(world.access(page(0), Access::READ)));
    world.change(leaf, |_| good);
    assert!(world.access(page(0), Access::READ).is_ok());
}

#[test]
fn iv2_a_violation_drops_the_tables_that_led_to_it() {
    let mut world = world(0);
    world.read(page(0));
    let walk = ept::walk(&world.memory, &world.second, DATA, Access::READ, Flags::Keep);
    let (pde, old) = (walk.path[2].entry_address(), walk.path[3].table);
    let new = world.memory.memory.allocate_table().unwrap();
    for entry in (0..512).map(|index| index * 8) {
        world.change(new + entry, |_| world.entry(old + entry));
        world.change(old + entry, |_| 0);
    }
    world.change(pde, |entry| entry & !old | new);
    assert!(is_final(world.access(page(1), Access::READ)), "through the table that is remembered");
    assert_eq!(world.read(page(1)), RAM + DATA + PAGE);
}

#[test]
fn iv5_invlpg_drops_all_tables_of_its_pcid() {
    let mut world = world(0);
    world.read(page(0));
    let (pde, table) = (world.guest_entry(page(0), 2), world.guest_entry(page(0), 1) & !0xfff);
    // Another table, whose pages all lie one further.
    let other = RAM + DATA + 20 * PAGE;
    for entry in (0..512).map(|index| index * 8).filter(|entry| world.entry(table + entry) != 0) {
        world.change(other + entry, |_| world.entry(table + entry) + PAGE);
    }
    world.change(pde, |entry| entry & 0xfff | (other - RAM));
    assert_eq!(world.read(page(1)), RAM + DATA + PAGE);
    world.tlb.invlpg(LinearSpace::default(), 0x1234_5000);
    assert_eq!(world.read(page(2)), RAM + DATA + 3 * PAGE, "an address elsewhere, and all tables go");
    assert_eq!(world.read(page(1)), RAM + DATA + PAGE, "pages stay");
}

#[test]
fn iv1_a_guest_table_is_read_where_it_was_until_invept() {
    let mut world = world(0);
    world.read(page(0));
    let table = world.guest_entry(page(0), 1) & !0xfff;
    // Another frame takes the place of the guest's table. In it all pages lie one further.
    let other = RAM + DATA + 20 * PAGE;
    for entry in (0..512).map(|index| index * 8).filter(|entry| world.entry(table + entry) != 0) {
        world.change(other + entry, |_| world.entry(table + entry) + PAGE);
    }
    world.change(world.ept_leaf(table - RAM), |leaf| leaf & 0xfff | other);
    assert_eq!(world.read(page(1)), RAM + DATA + PAGE);
    world.tlb.invept(InvEpt::Single(world.eptp));
    assert_eq!(world.read(page(1)), RAM + DATA + 2 * PAGE);
}

#[test]
fn iv3_each_space_has_its_own() {
    let mut world = world(0);
    let spaces = [
        LinearSpace { vpid: 1, pcid: 0, global_pages: false },
        LinearSpace { vpid: 2, pcid: 0, global_pages: false },
        LinearSpace { vpid: 1, pcid: 7, global_pages: false },
    ];
    let pte = world.guest_entry(page(0), 1);
    world.access_in(spaces[0], page(0), Access::READ).unwrap();
    world.change(pte, |entry| entry + PAGE);
    let expected = [0, PAGE, PAGE].map(|offset| Hpa(RAM + DATA + offset));
    for (space, hpa) in spaces.into_iter().zip(expected) {
        assert_eq!(world.access_in(space, page(0), Access::READ).unwrap().hpa, hpa, "{space:?}");
    }
    // Behind another EPTP nothing is known of that address.
    world.second = world.other;
    assert_eq!(world.access_in(spaces[0], page(0), Access::READ).unwrap().hpa, Hpa(OTHER_RAM + DATA));
}

#[test]
fn iv3_iv4_invept_of_one_eptp_leaves_the_other() {
    let mut world = world(0);
    world.read(page(0));
    world.change(world.ept_leaf(DATA), |entry| entry + PAGE);
    world.tlb.invept(InvEpt::Single(world.other_eptp));
    assert_eq!(world.read(page(0)), RAM + DATA);
    world.tlb.invept(InvEpt::All);
    assert_eq!(world.read(page(0)), RAM + DATA + PAGE);
}

#[test]
fn iv4_invvpid_leaves_guest_physical_mappings_and_invept_linear_ones() {
    let mut world = world(0);
    world.access_in(vpid(3), page(0), Access::READ).unwrap();
    world.change(world.ept_leaf(DATA), |entry| entry + PAGE);
    world.tlb.invvpid(InvVpid::Single(3));
    let after = world.access_in(vpid(3), page(0), Access::READ).unwrap();
    assert_eq!(after.hpa, Hpa(RAM + DATA), "the guest-physical mapping is still there");
}

/// The host's own paging, without a second level: linear 0x5000 lies at 0x1234_5000.
struct Host {
    paging: Paging,
    memory: SparseMemory,
    tlb: Tlb,
}

const TABLES: u64 = 0x1000;

fn host() -> Host {
    let paging = Paging { root: TABLES, ..world(0).guest };
    let mut memory = SparseMemory::default();
    for (level, at) in (1..=4).rev().zip((TABLES..).step_by(PAGE as usize)) {
        memory.add_frame(at);
        let next = if level == 1 { 0x1234_5000 } else { at + PAGE };
        memory.write_entry(at + u64::from(paging.format.index(level, 0x5000)) * 8, next | 0x27).unwrap();
    }
    Host { paging, memory, tlb: Tlb::new(16, 16) }
}

impl Host {
    fn access(&mut self, access: Access) -> Result<u64, Fault> {
        self.access_at(0x5000, access)
    }

    fn access_at(&mut self, address: u64, access: Access) -> Result<u64, Fault> {
        let Self { paging, memory, tlb } = self;
        let space = LinearSpace::default();
        tlb.linear(memory, paging, space, address, access, Flags::Set).map(|leaf| leaf.address)
    }

    /// Puts another table, with a page at 0x1234_6000, in the place of the lowest.
    fn replace_table(&mut self) {
        self.memory.add_frame(TABLES + 4 * PAGE);
        self.memory.write_entry(TABLES + 4 * PAGE + 5 * 8, 0x1234_6027).unwrap();
        self.memory.write_entry(TABLES + 2 * PAGE, (TABLES + 4 * PAGE) | 0x27).unwrap();
    }

    fn set_pte(&mut self, entry: u64) {
        self.memory.write_entry(TABLES + 3 * PAGE + 5 * 8, entry).unwrap();
    }
}

#[test]
fn iv4_invept_and_vpids_leave_the_hosts_linear_mappings() {
    let mut host = host();
    assert_eq!(host.access(Access::READ), Ok(0x1234_5000));
    host.replace_table();
    host.tlb.invept(InvEpt::All);
    host.tlb.invvpid(InvVpid::All);
    assert_eq!(host.access(Access::READ), Ok(0x1234_5000));
    // The page goes, and the table with it.
    host.tlb.invlpg(LinearSpace::default(), 0x5000);
    assert_eq!(host.access(Access::READ), Ok(0x1234_6000));
}

#[test]
fn a_linear_fault_drops_the_page_and_the_tables_that_led_to_it() {
    let mut host = host();
    host.set_pte(0x1234_5025);
    assert_eq!(host.access(Access::READ), Ok(0x1234_5000));
    host.set_pte(0x1234_5027);
    let denied = Fault::PageFault { code: PageFaultCode::PRESENT | PageFaultCode::WRITE };
    assert_eq!(host.access(Access::WRITE), Err(denied), "by the rights that are remembered");
    assert_eq!(host.access(Access::WRITE), Ok(0x1234_5000));

    // A neighbour that is not mapped, through the table that is remembered; then through the one that took its place.
    host.replace_table();
    host.memory.write_entry(TABLES + 4 * PAGE + 6 * 8, 0x1234_7027).unwrap();
    let absent = Fault::PageFault { code: PageFaultCode::empty() };
    assert_eq!(host.access_at(0x6000, Access::READ), Err(absent));
    assert_eq!(host.access_at(0x6000, Access::READ), Ok(0x1234_7000));
}

#[test]
fn iv4_each_processor_remembers_for_itself() {
    let mut world = world(0);
    world.read(page(0));
    let mut second_processor = world.tlb.clone();
    world.change(world.ept_leaf(DATA), |entry| entry + PAGE);
    world.tlb.invept(InvEpt::All);
    assert_eq!(world.read(page(0)), RAM + DATA + PAGE);
    std::mem::swap(&mut world.tlb, &mut second_processor);
    assert_eq!(world.read(page(0)), RAM + DATA);
}

/// What each instruction drops of: the page, its neighbour, a global page, the page under another PCID and VPID.
#[test]
fn iv5_each_instruction_drops_its_own() {
    type Forget = fn(&mut Tlb);
    const HERE: LinearSpace = LinearSpace { vpid: 1, pcid: 1, global_pages: true };
    const OTHER_PCID: LinearSpace = LinearSpace { pcid: 2, ..HERE };
    const OTHER_VPID: LinearSpace = LinearSpace { vpid: 2, ..HERE };
    let instructions: [(&str, Forget, [bool; 5]); 9] = [
        ("INVLPG", |tlb| tlb.invlpg(HERE, page(0).raw()), [true, false, false, false, false]),
        ("INVLPG, global", |tlb| tlb.invlpg(OTHER_PCID, page(2).raw()), [false, false, true, false, false]),
        ("INVPCID 0", |tlb| tlb.invpcid_address(HERE, page(0).raw()), [true, false, false, false, false]),
        ("MOV to CR3", |tlb| tlb.mov_to_cr3(HERE), [true, true, false, false, false]),
        ("CR4.PGE", |tlb| tlb.flush(1), [true, true, true, true, false]),
        (
            "INVVPID 0",
            |tlb| tlb.invvpid(InvVpid::Address { vpid: 1, address: page(0).raw() }),
            [true, false, false, true, false],
        ),
        ("INVVPID 1", |tlb| tlb.invvpid(InvVpid::Single(1)), [true, true, true, true, false]),
        ("INVVPID 2", |tlb| tlb.invvpid(InvVpid::All), [true, true, true, true, true]),
        ("INVVPID 3", |tlb| tlb.invvpid(InvVpid::SingleNonGlobal(1)), [true, true, false, true, false]),
    ];
    for (name, forget, dropped) in instructions {
        let mut world = world(0);
        world.change(world.guest_entry(page(2), 1), |entry| entry | GLOBAL);
        let probes = [
            (HERE, page(0)),
            (HERE, page(1)),
            (OTHER_PCID, page(2)),
            (OTHER_PCID, page(0)),
            (OTHER_VPID, page(0)),
        ];
        for (space, gva) in probes {
            world.access_in(space, gva, Access::READ).unwrap();
        }
        (0..3).for_each(|n| world.change(world.guest_entry(page(n), 1), |entry| entry + 8 * PAGE));
        forget(&mut world.tlb);
        // A fresh copy for each: a miss would fill what the next one looks for.
        let seen = probes.map(|(space, gva)| {
            let before = world.tlb.clone();
            let hpa = world.access_in(space, gva, Access::READ).unwrap().hpa.raw();
            world.tlb = before;
            hpa == RAM + DATA + gva.raw() - page(0).raw() + 8 * PAGE
        });
        assert_eq!(seen, dropped, "{name}");
    }
}

#[test]
fn iv5_one_address_drops_the_whole_large_page() {
    let mut world = world(0);
    let pde = world.guest_entry(page(0), 2);
    world.change(pde, |_| 0x7 | 1 << 7);
    assert_eq!(world.read(page(1)), RAM + PAGE);
    assert_eq!(world.read(page(2)), RAM + 2 * PAGE);
    world.change(pde, |entry| entry & !1);
    assert_eq!(world.read(page(1)), RAM + PAGE);
    world.tlb.invlpg(LinearSpace::default(), page(2).raw());
    let code = page_fault(world.access(page(1), Access::READ));
    assert_eq!(code, Some(PageFaultCode::empty()));
}

#[test]
fn a_page_fault_drops_what_led_to_it() {
    let mut world = world(0);
    let pte = world.guest_entry(page(0), 1);
    world.change(pte, |entry| entry & !2);
    world.read(page(0));
    world.change(pte, |entry| entry | 2);
    let code = page_fault(world.access(page(0), Access::WRITE));
    assert_eq!(code, Some(PageFaultCode::PRESENT | PageFaultCode::WRITE));
    assert!(world.access(page(0), Access::WRITE).is_ok());
}

#[test]
fn without_paging_the_guest_uses_guest_physical_mappings() {
    let mut world = world(0);
    let World { memory, second, tlb, .. } = &mut world;
    let read = |memory: &_, tlb: &mut Tlb| {
        let gva = memory_model::Gva(DATA);
        tlb.nested(memory, None, second, LinearSpace::default(), gva, Access::READ, Flags::Set).unwrap()
    };
    let first = read(memory, tlb);
    assert_eq!((first.guest, first.hpa), (None, Hpa(RAM + DATA)));
    memory.reads.set(0);
    assert_eq!(read(memory, tlb).hpa, first.hpa);
    assert_eq!(memory.reads.get(), 0);
    tlb.invvpid(InvVpid::Single(0));
    tlb.flush(0);
    assert_eq!(read(memory, tlb).hpa, first.hpa);
    assert_eq!(memory.reads.get(), 0, "INVVPID does not reach them");
    assert!(first.rights().contains(Rights::RWX));
}
