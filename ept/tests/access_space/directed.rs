//! Rule C5: the cases of kvm-unit-tests that need more than one page, or one access after another.

use ept::{
    Access, Controls, Cr3, Fault, Flags, Ia32e, Levels, MaxPhyAddr, Paging, PhysMemory, SparseMemory,
    translate,
};

const P: u64 = 1 << 0;
const W: u64 = 1 << 1;
const U: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;

const ROOT: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const OTHER_PD: u64 = 0x5000;
const OTHER_PT: u64 = 0x6000;

const GIB: u64 = 1 << 30;
const MIB_2: u64 = 2 << 20;

/// Memory with these entries, below a PML4E and a PDPTE for the first GiB that grant everything.
fn memory(entries: &[(u64, u64)]) -> SparseMemory {
    let mut memory = SparseMemory::default();
    for table in (ROOT..=OTHER_PT).step_by(0x1000) {
        memory.add_frame(table);
    }
    for &(at, entry) in [(ROOT, PDPT | P | W | U), (PDPT, PD | P | W | U)].iter().chain(entries) {
        memory.write_entry(at, entry).unwrap();
    }
    memory
}

fn paging(controls: Controls) -> Paging {
    let max_phy_addr = MaxPhyAddr::new(46).unwrap();
    let ia32e = Ia32e { levels: Levels::Four, max_phy_addr, no_execute: true, page_1g: true, amd: false };
    Paging::ia32e(Cr3::new(ROOT, max_phy_addr).unwrap(), ia32e, controls)
}

/// The physical address, or the error code.
fn access(memory: &SparseMemory, controls: Controls, address: u64, access: Access) -> Result<u64, u64> {
    match translate(memory, &paging(controls), address, access, Flags::Set) {
        Ok(leaf) => Ok(leaf.address),
        Err(Fault::PageFault { code }) => Err(code.bits()),
        Err(other) => panic!("{other}"),
    }
}

/// Two large pages of one frame, one of them read-only: the writable one's use must not let writes through the other.
#[test]
fn c5_corrupt_huge_page() {
    let memory = memory(&[(PD, 0x4000_0000 | PS | P | W), (PD + 8, 0x4000_0000 | PS | P)]);
    let wp = Controls::WP;
    assert_eq!(access(&memory, wp, 0x1234, Access::READ), Ok(0x4000_1234));
    assert_eq!(access(&memory, wp, MIB_2 + 0x1234, Access::READ), Ok(0x4000_1234));
    assert_eq!(access(&memory, wp, 0x1234, Access::WRITE), Ok(0x4000_1234));
    assert_eq!(access(&memory, wp, MIB_2 + 0x1234, Access::WRITE), Err(0b00011));
    assert_eq!(memory.read_entry(PD), Ok(0x4000_0000 | PS | P | W | A | D));
    assert_eq!(memory.read_entry(PD + 8), Ok(0x4000_0000 | PS | P | A));
}

/// A page is used, its neighbour is not present: the neighbour's fault says so, although its PTE was at hand.
#[test]
fn c5_error_code_on_a_prefetched_pte() {
    let memory = memory(&[(PD, PT | P | W | U), (PT, 0x7000 | P), (PT + 8, 0x8000)]);
    assert_eq!(access(&memory, Controls::WP, 0, Access::READ), Ok(0x7000));
    assert_eq!(access(&memory, Controls::WP, 0x1000, Access::READ), Err(0b00000));
    assert_eq!(access(&memory, Controls::WP, 0x1000, Access::WRITE.by_user()), Err(0b00110));
    assert_eq!(memory.read_entry(PT + 8), Ok(0x8000));
}

/// A supervisor write through a large page without W, with WP off, sets D. A read before it sets A alone.
#[test]
fn c5_dirty_on_a_large_pte_without_wp() {
    let memory = memory(&[(PD, 0x4000_0000 | PS | P | U)]);
    assert_eq!(access(&memory, Controls::empty(), 0, Access::READ), Ok(0x4000_0000));
    assert_eq!(memory.read_entry(PD), Ok(0x4000_0000 | PS | P | U | A));
    assert_eq!(access(&memory, Controls::empty(), 0, Access::WRITE.by_user()), Err(0b00111));
    assert_eq!(memory.read_entry(PD), Ok(0x4000_0000 | PS | P | U | A));
    assert_eq!(access(&memory, Controls::empty(), 0, Access::WRITE), Ok(0x4000_0000));
    assert_eq!(memory.read_entry(PD), Ok(0x4000_0000 | PS | P | U | A | D));
}

/// With WP off the supervisor writes to a read-only user page; the page is not the supervisor's for that, and SMEP
/// still denies the fetch.
#[test]
fn c5_smep_without_wp() {
    let memory = memory(&[(PD, PT | P | W | U), (PT, 0x7000 | P | U)]);
    assert_eq!(access(&memory, Controls::SMEP, 0, Access::WRITE), Ok(0x7000));
    assert_eq!(access(&memory, Controls::SMEP, 0, Access::FETCH), Err(0b10001));
    assert_eq!(access(&memory, Controls::SMEP, 0, Access::FETCH.by_user()), Ok(0x7000));
    assert_eq!(access(&memory, Controls::SMEP, 0, Access::WRITE.by_user()), Err(0b00111));
    assert_eq!(access(&memory, Controls::empty(), 0, Access::FETCH), Ok(0x7000));
}

/// Each access goes by WP as it stands then.
#[test]
fn c5_toggling_wp() {
    let memory = memory(&[(PD, PT | P | W | U), (PT, 0x7000 | P), (PT + 8, 0x8000 | P | W)]);
    for _ in 0..2 {
        assert_eq!(access(&memory, Controls::WP, 0, Access::WRITE), Err(0b00011));
        assert_eq!(access(&memory, Controls::empty(), 0, Access::WRITE), Ok(0x7000));
        assert_eq!(access(&memory, Controls::WP, 0x1000, Access::WRITE), Ok(0x8000));
        assert_eq!(access(&memory, Controls::WP, 0, Access::READ), Ok(0x7000));
    }
}

/// One page table below four PDEs, and the whole below two PDPTEs: what a path grants is the AND of its own entries,
/// not of whatever else leads to the same table.
#[test]
fn c5_effective_rights_of_shared_tables() {
    let rights = [P, P | W, P | U, P | W | U];
    let mut entries = vec![(PDPT + 8, OTHER_PD | P | U)];
    for (n, rights) in (0..).zip(rights) {
        entries.extend([(PD + n * 8, PT | rights), (OTHER_PD + n * 8, PT | rights)]);
        entries.push((PT + n * 8, (0x8000 + n * 0x1000) | rights));
    }
    let memory = memory(&entries);
    for (read_only, pde, pte) in (0..32).map(|n| ((n >> 4) & 1, (n >> 2) & 3, n & 3)) {
        let address = read_only * GIB + pde * MIB_2 + pte * 0x1000;
        let granted = rights[pde as usize] & rights[pte as usize];
        let (user, write) = (granted & U != 0, granted & W != 0 && read_only == 0);
        let page = 0x8000 + pte * 0x1000;
        let check = |does: Access, allowed: bool, code: u64| {
            let expected = if allowed { Ok(page) } else { Err(code) };
            assert_eq!(access(&memory, Controls::WP, address, does), expected, "{address:#x} {does:?}");
        };
        check(Access::READ, true, 0);
        check(Access::WRITE, write, 0b00011);
        check(Access::READ.by_user(), user, 0b00101);
        check(Access::WRITE.by_user(), user && write, 0b00111);
    }
}
