//! Single entries: built, read back, and refused.

use ept::{
    Access, Attributes, Caching, Entry, Ept, EptCaps, Error, Fault, Flags, Format, Ia32e, Kind, Levels,
    MaxPhyAddr, MemoryType, Misconfiguration, Paging, Qualification, Rights, Role, SparseMemory, walk,
};
use memory_model::PageSize;

/// What a processor offers.
#[derive(Clone, Copy, Debug)]
struct Machine {
    ept: bool,
    levels: Levels,
    width: u8,
    page_1g: bool,
    page_2m: bool,
    execute_only: bool,
    nxe: bool,
}

const EPT: Machine = Machine {
    ept: true,
    levels: Levels::Five,
    width: 46,
    page_1g: true,
    page_2m: true,
    execute_only: true,
    nxe: true,
};
const IA32E: Machine = Machine { ept: false, ..EPT };

fn format(machine: Machine) -> Format {
    let Machine { levels, page_1g, .. } = machine;
    let max_phy_addr = MaxPhyAddr::new(machine.width).unwrap();
    if !machine.ept {
        return Format::ia32e(Ia32e { levels, max_phy_addr, no_execute: machine.nxe, page_1g, amd: false });
    }
    let mut caps = EptCaps::all();
    caps.set(EptCaps::PAGE_1G, page_1g);
    caps.set(EptCaps::PAGE_2M, machine.page_2m);
    caps.set(EptCaps::EXECUTE_ONLY, machine.execute_only);
    Format::ept(Ept { accessed_dirty: true, ..Ept::new(levels, caps, max_phy_addr) })
}

/// All settings of what the processor offers.
fn machines(base: Machine) -> impl Iterator<Item = Machine> {
    (0..32).map(move |n: u32| Machine {
        page_1g: n & 1 != 0,
        page_2m: n & 2 != 0 || !base.ept,
        execute_only: n & 4 != 0,
        nxe: n & 8 != 0,
        width: if n & 16 != 0 { 52 } else { 46 },
        ..base
    })
}

#[test]
fn each_misconfiguration_gives_its_reason() {
    let strict = format(Machine { execute_only: false, levels: Levels::Four, ..EPT });
    let cases = [
        (1, 0b010, Misconfiguration::WriteWithoutRead),
        (4, 0b110, Misconfiguration::WriteWithoutRead),
        (2, 0b100, Misconfiguration::ExecuteOnly),
        (2, 0b111 | 1 << 3, Misconfiguration::ReservedBits(1 << 3)),
        (4, 0b111 | 1 << 7, Misconfiguration::ReservedBits(1 << 7)),
        (2, 0b111 | 6 << 3 | 1 << 7 | 1 << 20, Misconfiguration::ReservedBits(1 << 20)),
        (1, 0b111 | 1 << 50, Misconfiguration::ReservedBits(1 << 50)),
        (1, 0b111 | 7 << 3, Misconfiguration::MemoryType(7)),
        (3, 0b111 | 2 << 3 | 1 << 7, Misconfiguration::MemoryType(2)),
    ];
    for (level, entry, reason) in cases {
        assert_eq!(strict.decode(level, entry), Entry::Malformed(reason), "{entry:#x} at {level}");
    }
}

#[test]
fn i4_each_entry_grants_by_its_own_bits() {
    let ept = format(EPT);
    assert_eq!(ept.rights(0b101), Rights::READ | Rights::EXEC);
    assert_eq!(ept.rights(0b111), Rights::RWX);
    let ia32e = format(IA32E);
    assert_eq!(ia32e.rights(0b001), Rights::READ | Rights::EXEC);
    assert_eq!(ia32e.rights(1 << 63 | 0b111), Rights::READ | Rights::WRITE | Rights::USER);
    // Without EFER.NXE bit 63 takes nothing away: it is reserved.
    let without = format(Machine { nxe: false, ..IA32E });
    assert_eq!(without.decode(1, 1 << 63 | 1), Entry::Malformed(Misconfiguration::ReservedBits(1 << 63)));
}

/// What is encoded reads back the same, for all rights, types and sizes; what cannot be said is refused.
#[test]
fn leaves_read_back_as_they_were_made() {
    for machine in machines(EPT).chain(machines(IA32E)) {
        let format = format(machine);
        let ept_types = [0, 1, 4, 5, 6].map(|raw| MemoryType::from_raw(raw).unwrap());
        let cachings: Vec<_> = match machine.ept {
            true => ept_types
                .iter()
                .flat_map(|&memory_type| {
                    [false, true].map(|ignore_pat| Caching::Ept { memory_type, ignore_pat })
                })
                .collect(),
            false => (0..8).map(Caching::Pat).collect(),
        };
        for size in PageSize::ALL {
            for rights in (0..16).map(Rights::from_bits_truncate) {
                for &caching in &cachings {
                    let frame = 3 << 30;
                    match format.leaf(size, frame, Attributes { rights, caching, software: 0 }) {
                        Ok(leaf) => {
                            assert_eq!(format.decode(size.level(), leaf), Entry::Leaf(frame, size));
                            assert_eq!(format.rights(leaf), rights);
                            assert_eq!(format.caching(size.level(), leaf), caching);
                        }
                        Err(Error::PageSize { .. }) => assert!(!format.has_size(size)),
                        Err(Error::Rights { .. }) => {
                            assert!(!sayable(machine, rights), "{rights:?} {machine:?}")
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        }
    }
}

/// Whether one entry can grant exactly these rights.
fn sayable(machine: Machine, rights: Rights) -> bool {
    let has = |right| rights.contains(right);
    if machine.ept {
        let execute_only = rights == Rights::EXEC && machine.execute_only;
        !has(Rights::USER) && (has(Rights::READ) || execute_only)
    } else {
        has(Rights::READ) && (has(Rights::EXEC) || machine.nxe)
    }
}

#[test]
fn what_an_entry_cannot_hold_is_refused() {
    let format = format(EPT);
    let page = Attributes::ram(Kind::Ept, Rights::RWX);
    let leaf = |size, frame, page| format.leaf(size, frame, page).unwrap_err();
    let misaligned = Error::Misaligned { address: 0x1000, size: PageSize::Size2M };
    assert_eq!(leaf(PageSize::Size2M, 0x1000, page), misaligned);
    assert_eq!(leaf(PageSize::Size4K, 1 << 46, page), Error::OutputRange { address: 1 << 46, bits: 46 });
    let pat = Attributes { caching: Caching::PAT_RAM, ..page };
    assert_eq!(leaf(PageSize::Size4K, 0, pat), Error::Caching);
    let frame_bit = Attributes { software: 1 << 11 | 1 << 12, ..page };
    assert_eq!(
        leaf(PageSize::Size4K, 0, frame_bit),
        Error::SoftwareBits { bits: 1 << 12, size: PageSize::Size4K }
    );
    assert_eq!(format.table(0x800), Err(Error::Misaligned { address: 0x800, size: PageSize::Size4K }));
}

/// Each bit of an entry has exactly one row, or is reserved; bits wider than MAXPHYADDR have a row and are reserved.
#[test]
fn rows_do_not_overlap() {
    const ROLES: [Role; 19] = [
        Role::Present,
        Role::Read,
        Role::Write,
        Role::Execute,
        Role::NoExecute,
        Role::User,
        Role::WriteThrough,
        Role::CacheDisable,
        Role::PageAttribute,
        Role::MemoryType,
        Role::IgnorePat,
        Role::PageSize,
        Role::Accessed,
        Role::Dirty,
        Role::Global,
        Role::Frame,
        Role::ProtectionKey,
        Role::SuppressVe,
        Role::Ignored,
    ];
    for format in [format(EPT), format(IA32E)] {
        for level in 1..=5 {
            for leaf in [false, true] {
                if leaf && level > 3 || !leaf && level == 1 {
                    continue;
                }
                let mut seen = 0;
                for role in ROLES {
                    let bits = format.bits(role, level, leaf);
                    assert_eq!(seen & bits, 0, "{role:?} at {level}, leaf: {leaf}");
                    seen |= bits;
                }
                let wide = !((1 << 46) - 1) & 0x000f_ffff_ffff_f000;
                assert_eq!(format.reserved(level, leaf), !seen | wide, "level {level}, leaf: {leaf}");
            }
        }
    }
}

const PLAIN: Ept = Ept::new(Levels::Five, EptCaps::all(), MaxPhyAddr::MAX);

fn malformed(format: &Format, level: u8, entry: u64) -> Option<Misconfiguration> {
    match format.decode(level, entry) {
        Entry::Malformed(reason) => Some(reason),
        _ => None,
    }
}

#[test]
fn p1_m2_xu_alone_makes_an_entry_present_and_execute_only() {
    let on = Format::ept(Ept { mode_based_execute: true, ..PLAIN });
    let lacking = EptCaps::all() - EptCaps::EXECUTE_ONLY;
    let strict = Format::ept(Ept { mode_based_execute: true, caps: lacking, ..PLAIN });
    let xu = 1 << 10 | 0x5000;
    for level in 1..=5 {
        assert_eq!(Format::ept(PLAIN).decode(level, xu), Entry::Absent, "without mode-based execute control");
        let present = if level == 1 { Entry::Leaf(0x5000, PageSize::Size4K) } else { Entry::Table(0x5000) };
        assert_eq!(on.decode(level, xu), present);
        assert_eq!(malformed(&strict, level, xu), Some(Misconfiguration::ExecuteOnly));
        assert_eq!(malformed(&strict, level, xu | 1), None);
    }
    assert_eq!(on.rights(xu), Rights::USER_EXEC);
}

#[test]
fn m1_write_without_read_is_misconfigured_at_any_level() {
    let format = Format::ept(PLAIN);
    for level in 1..=5 {
        for (rights, bad) in [(0b010, true), (0b110, true), (0b011, false), (0b100, false), (0b101, false)] {
            let reason = bad.then_some(Misconfiguration::WriteWithoutRead);
            assert_eq!(malformed(&format, level, 0x5000 | rights), reason, "{rights:#b} at {level}");
        }
    }
}

#[test]
fn m4_leaf_types_2_3_7_are_misconfigured() {
    let format = Format::ept(PLAIN);
    for (level, leaf) in [(1, 0x7), (2, 0x87), (3, 0x87)] {
        for memory_type in 0..8 {
            let bad = [2, 3, 7].contains(&memory_type);
            let reason = bad.then_some(Misconfiguration::MemoryType(memory_type));
            assert_eq!(malformed(&format, level, leaf | u64::from(memory_type) << 3), reason);
        }
    }
}

/// The last step's level, and the fault, of a walk through four tables of which some entries are given.
fn fault_of(paging: &Paging, entries: [u64; 4]) -> (u8, Fault) {
    let mut memory = SparseMemory::default();
    for (table, entry) in [0x1000, 0x2000, 0x3000, 0x4000].into_iter().zip(entries) {
        memory.add_frame(table);
        memory.write_entry(table, entry).unwrap();
    }
    let walk = walk(&memory, paging, 0, Access::WRITE, Flags::Keep);
    (walk.path.last().unwrap().level, walk.outcome.unwrap_err())
}

#[test]
fn m6_the_first_entry_that_is_wrong_decides_and_rights_come_last() {
    let format = Format::ept(Ept { levels: Levels::Four, ..PLAIN });
    let paging = Paging::new(format, 0x1000);
    let violation = |bits| Fault::EptViolation { qualification: Qualification::from_bits_retain(bits) };
    let reason = Misconfiguration::WriteWithoutRead;
    let misconfigured = Fault::EptMisconfiguration { reason };
    assert_eq!(fault_of(&paging, [0x2007, 0x3002, 0, 0]), (3, misconfigured), "before what is below");
    assert_eq!(fault_of(&paging, [0x2007, 0, 0x4002, 0]), (3, violation(0b010)), "absent first");
    assert_eq!(
        fault_of(&paging, [0x2001, 0x3007, 0x4007, 0x5006]),
        (1, misconfigured),
        "though W is denied above"
    );
    assert_eq!(fault_of(&paging, [0x2001, 0x3007, 0x4007, 0x5037]), (1, violation(0b001_010)));
    // Rule P1: an absent entry may hold anything.
    assert_eq!(fault_of(&paging, [0x2007, 0x3007, u64::MAX << 3, 0]), (2, violation(0b010)));
}

#[test]
fn m9_an_address_wider_than_the_table_is_told_apart() {
    for (levels, width) in [(Levels::Four, 48), (Levels::Five, 57)] {
        let formats =
            [Format::ept(Ept { levels, ..PLAIN }), Format::npt(Ia32e::new(levels, MaxPhyAddr::MAX))];
        for format in formats {
            let memory = SparseMemory::default();
            let outcome = |address| {
                walk(&memory, &Paging::new(format, 0x1000), address, Access::READ, Flags::Keep).outcome
            };
            assert_eq!(outcome(1 << width), Err(Fault::TooWide { address: 1 << width }));
            assert!(matches!(outcome((1 << width) - 1), Err(Fault::Memory(_))));
        }
    }
}

#[test]
fn i1_amd_reserves_bit_8_at_the_two_highest_levels() {
    for amd in [false, true] {
        let format = Format::ia32e(Ia32e { amd, ..Ia32e::new(Levels::Five, MaxPhyAddr::MAX) });
        for level in 2..=5 {
            let reason = (amd && level >= 4).then_some(Misconfiguration::ReservedBits(1 << 8));
            assert_eq!(malformed(&format, level, 0x5000 | 1 << 8 | 1), reason, "level {level}");
        }
    }
}

/// A bit that a control gives a meaning is software's without it, and no longer with it.
#[test]
fn bits_of_extensions_are_free_without_them() {
    let extensions: [(u32, Ept); 5] = [
        (10, Ept { mode_based_execute: true, ..PLAIN }),
        (57, Ept { guest_paging_verification: true, ..PLAIN }),
        (58, Ept { paging_write: true, ..PLAIN }),
        (60, Ept { supervisor_shadow_stack: true, ..PLAIN }),
        (61, Ept { sub_page_write: true, ..PLAIN }),
    ];
    for (bit, ept) in extensions {
        let ignored = |ept| Format::ept(ept).bits(Role::Ignored, 1, true) >> bit & 1 != 0;
        assert_eq!((ignored(PLAIN), ignored(ept)), (true, false), "bit {bit}");
        assert_eq!(Format::ept(ept).reserved(1, true) >> bit & 1, 0);
    }
}
