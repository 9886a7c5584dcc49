//! Every combination of rights, control bits, keys and accesses on one IA-32e page, against the rules' text.

use ept::{
    Access, Controls, Cr3, Fault, Flags, Ia32e, Levels, MaxPhyAddr, PageFaultCode, Paging, ProtectionKeys,
    Rights, SparseMemory, translate, walk,
};

const P: u64 = 1;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const D: u64 = 1 << 6;
const NX: u64 = 1 << 63;
const KEY: u64 = 5;

/// One page at address 0, with these entries at level 4 and 1.
struct Page {
    top: u64,
    leaf: u64,
}

struct Machine {
    controls: Controls,
    no_execute: bool,
    /// Write-disable above access-disable, of the page's key.
    pkru: u32,
    pkrs: u32,
}

/// The #PF code of the access, if it is denied.
fn expected(page: &Page, machine: &Machine, access: Access) -> Option<u64> {
    let on = |control| machine.controls.contains(control);
    let reads = access.does.contains(Rights::READ);
    let (writes, fetches) = (access.writes(), access.fetches());
    let data = reads || writes;
    let code_i = fetches && (machine.no_execute || on(Controls::SMEP));
    let code = u64::from(writes) << 1 | u64::from(access.user) << 2 | u64::from(code_i) << 4;
    if !machine.no_execute && (page.top | page.leaf) & NX != 0 {
        return Some(code | 1 | 1 << 3);
    }
    let user_page = page.top & page.leaf & U != 0;
    let writable = page.top & page.leaf & W != 0;
    let executable = (page.top | page.leaf) & NX == 0;
    let denied = if access.user {
        !user_page || writes && !writable || fetches && !executable
    } else {
        writes && !writable && on(Controls::WP)
            || fetches && (!executable || user_page && on(Controls::SMEP))
            || data && user_page && on(Controls::SMAP) && !access.ac
    };
    let key = match user_page {
        true if on(Controls::PKE) => machine.pkru,
        false if on(Controls::PKS) => machine.pkrs,
        _ => 0,
    };
    let key_denies = data && (key & 1 != 0 || key & 2 != 0 && writes && (access.user || on(Controls::WP)));
    (denied || key_denies).then_some(code | 1 | u64::from(key_denies) << 5)
}

fn memory_of(page: &Page) -> SparseMemory {
    let mut memory = SparseMemory::default();
    for (address, entry) in
        [(0x1000, page.top | 0x2000), (0x2000, 0x3007), (0x3000, 0x4007), (0x4000, page.leaf | 0x5000)]
    {
        memory.add_frame(address);
        memory.write_entry(address, entry).unwrap();
    }
    memory
}

fn paging_of(machine: &Machine) -> Paging {
    let width = MaxPhyAddr::MAX;
    let ia32e = Ia32e { no_execute: machine.no_execute, ..Ia32e::new(Levels::Four, width) };
    let mut paging = Paging::ia32e(Cr3::new(0x1000, width).unwrap(), ia32e, machine.controls);
    // The other keys allow nothing at all.
    let keys = |key: u32| !(3 << (2 * KEY)) | key << (2 * KEY);
    paging.keys = ProtectionKeys { pkru: keys(machine.pkru), pkrs: keys(machine.pkrs) };
    paging
}

fn accesses() -> impl Iterator<Item = Access> {
    [Access::READ, Access::WRITE, Access::READ_WRITE, Access::FETCH].into_iter().flat_map(|access| {
        [(false, false), (false, true), (true, false)].map(|(user, ac)| Access { user, ac, ..access })
    })
}

fn subsets(bits: [u64; 3]) -> impl Iterator<Item = u64> {
    (0..8).map(move |n| (0..3).filter(|i| n >> i & 1 != 0).map(|i| bits[i]).sum())
}

/// Rules I4 to I6, F1 to F3: 393,216 cases, by the exact walker and by the fast one.
#[test]
fn i4_i5_i6_f2_f3_every_combination() {
    let (mut denied, mut cases) = (0, 0);
    for (top, leaf) in subsets([W, U, NX]).flat_map(|top| subsets([W, U, NX]).map(move |leaf| (top, leaf))) {
        let page = Page { top: P | top, leaf: P | leaf | KEY << 59 };
        let memory = memory_of(&page);
        for (controls, no_execute) in (0..32).flat_map(|n| [(n, true), (n, false)]) {
            for (pkru, pkrs) in [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (0, 2), (0, 3), (1, 2)] {
                let controls = Controls::from_bits_truncate(controls);
                let machine = Machine { controls, no_execute, pkru, pkrs };
                let paging = paging_of(&machine);
                for access in accesses() {
                    let outcome = translate(&memory, &paging, 0, access, Flags::Keep);
                    let found = match outcome {
                        Ok(_) => None,
                        Err(Fault::PageFault { code }) => Some(code.bits()),
                        Err(other) => panic!("{other}"),
                    };
                    let expected = expected(&page, &machine, access);
                    assert_eq!(
                        found, expected,
                        "{access:?} at {:#x}, {:#x}, {controls:?}, NX {no_execute}, keys {pkru} {pkrs}",
                        page.top, page.leaf
                    );
                    denied += u32::from(found.is_some());
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 64 * 64 * 8 * 12);
    assert!(denied > cases / 4 && denied < cases * 9 / 10, "{denied} of {cases}");
}

#[test]
fn i5_without_wp_a_supervisor_write_ignores_w_and_write_disable() {
    let page = Page { top: P | W | U, leaf: P | U | KEY << 59 };
    let write = |controls, access| {
        let machine = Machine { controls, no_execute: true, pkru: 2, pkrs: 2 };
        translate(&memory_of(&page), &paging_of(&machine), 0, access, Flags::Keep).is_ok()
    };
    assert!(write(Controls::PKE, Access::WRITE));
    assert!(!write(Controls::PKE | Controls::WP, Access::WRITE));
    assert!(!write(Controls::PKE, Access::WRITE.by_user()));
}

/// Rule F1: not present stops the walk first, then reserved bits, level by level; rights come last.
#[test]
fn f1_the_first_entry_that_is_wrong_decides() {
    let machine = Machine { controls: Controls::WP, no_execute: true, pkru: 0, pkrs: 0 };
    let reserved = 1 << 7;
    let absent_below = Page { top: P | reserved, leaf: 0 };
    let outcome = |page: &Page| {
        let walk = walk(&memory_of(page), &paging_of(&machine), 0, Access::WRITE.by_user(), Flags::Set);
        (walk.outcome.unwrap_err(), walk.path.len())
    };
    let code = |bits| Fault::PageFault { code: PageFaultCode::from_bits_retain(bits) };
    assert_eq!(outcome(&absent_below), (code(0b1111), 1));
    assert_eq!(outcome(&Page { top: P, leaf: 1 << 50 }), (code(0b0110), 4), "absent, for all its other bits");
    assert_eq!(outcome(&Page { top: P, leaf: P | U }), (code(0b0111), 4), "rights");
}

/// Rule F4 leaves it open whether a faulting walk sets A in the entries it passed: here it does not.
#[test]
fn f4_a_faulting_walk_changes_nothing() {
    use ept::PhysMemory;
    let machine = Machine { controls: Controls::WP, no_execute: true, pkru: 0, pkrs: 0 };
    let memory = memory_of(&Page { top: P | W, leaf: P });
    assert!(translate(&memory, &paging_of(&machine), 0, Access::WRITE, Flags::Set).is_err());
    let entries = [0x1000, 0x2000, 0x3000, 0x4000].map(|at| memory.read_entry(at).unwrap() & 0x60);
    assert_eq!(entries, [0; 4]);
    assert!(translate(&memory, &paging_of(&machine), 0, Access::READ, Flags::Set).is_ok());
    let entries = [0x1000, 0x2000, 0x3000, 0x4000].map(|at| memory.read_entry(at).unwrap() & 0x60);
    assert_eq!(entries, [0x20; 4]);
}

/// SDM vol. 3A, 4.6: with CR4.CET a shadow stack is a dirty page whose leaf alone lacks W; its faults show bit 6.
#[test]
fn shadow_stack_accesses_go_to_shadow_stack_pages() {
    let ask = |page: Page, controls, access: Access| {
        let machine = Machine { controls, no_execute: true, pkru: 0, pkrs: 0 };
        match translate(&memory_of(&page), &paging_of(&machine), 0, access, Flags::Keep) {
            Ok(_) => None,
            Err(Fault::PageFault { code }) => Some(code.bits()),
            Err(other) => panic!("{other}"),
        }
    };
    let on = Controls::WP | Controls::CET;
    let (top, write) = (P | W | U, Access::WRITE.to_shadow_stack());
    let user = write.by_user();
    assert_eq!(ask(Page { top, leaf: P | U | D }, on, user), None);
    assert_eq!(ask(Page { top, leaf: P | D }, on, write), None);
    assert_eq!(ask(Page { top, leaf: P | U | D }, on, write), Some(0b100_0011), "a user page");
    assert_eq!(ask(Page { top, leaf: P | D }, on, user), Some(0b100_0111), "a supervisor page");
    assert_eq!(ask(Page { top, leaf: P | U }, on, user), Some(0b100_0111), "not dirty");
    assert_eq!(ask(Page { top, leaf: P | U | W | D }, on, user), Some(0b100_0111), "an ordinary page");
    assert_eq!(ask(Page { top: P | U, leaf: P | U | D }, on, user), Some(0b100_0111), "W above");
    assert_eq!(ask(Page { top, leaf: 0 }, on, user), Some(0b100_0110), "not present");
    assert_eq!(ask(Page { top, leaf: P | U | D }, Controls::WP, user), Some(0b000_0111), "without CET");
}
