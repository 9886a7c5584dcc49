//! The crate's walker, case by case, against the [model](crate::model).

use std::cell::Cell;

use ept::{
    Access, Controls, Cr3, Fault, Flags, Ia32e, Levels, MaxPhyAddr, MemoryError, Paging, PhysMemory,
    ProtectionKeys, translate,
};

use crate::case::*;
use crate::model::{self, End, Entries, PT};

/// The address that is accessed, and where its four entries are. Nothing else is memory.
const ADDRESS: u64 = 0x0000_1234_5678_9000;
const ROOT: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const ENTRIES: [u64; 4] = [ROOT + 8 * 0x24, PDPT + 8 * 0xd1, PD + 8 * 0xb3, PT + 8 * 0x189];

/// A PML4E, a PDPTE, a PDE and a PTE.
struct Cells([Cell<u64>; 4]);

impl Cells {
    fn at(&self, address: u64) -> Result<&Cell<u64>, MemoryError> {
        let index = ENTRIES.iter().position(|&entry| entry == address);
        Ok(&self.0[index.ok_or(MemoryError::Absent { address })?])
    }
}

impl PhysMemory for Cells {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        Ok(self.at(address)?.get())
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let cell = self.at(address)?;
        let same = cell.get() == current;
        if same {
            cell.set(new);
        }
        Ok(same)
    }
}

fn paging(width: u32, processor: u32) -> Paging {
    let has = |flag| processor & flag != 0;
    let max_phy_addr = MaxPhyAddr::new(width as u8).unwrap();
    let ia32e =
        Ia32e { levels: Levels::Four, max_phy_addr, no_execute: has(EFER_NX), page_1g: true, amd: false };
    let mut controls = Controls::empty();
    controls.set(Controls::WP, has(WP));
    controls.set(Controls::PKE, has(PKE));
    // Of key 1.
    let pkru = u32::from(has(PKRU_AD)) << 2 | u32::from(has(PKRU_WD)) << 3;
    let keys = ProtectionKeys { pkru, pkrs: 0 };
    Paging { keys, ..Paging::ia32e(Cr3::new(ROOT, max_phy_addr).unwrap(), ia32e, controls) }
}

fn access(flags: u32) -> Access {
    let access = match flags & (WRITE | FETCH) {
        WRITE => Access::WRITE,
        FETCH => Access::FETCH,
        _ => Access::READ,
    };
    if flags & USER != 0 { access.by_user() } else { access }
}

/// What is compared, rule C4: the end, the PDE and the PTE. After a fault A of the PDE is masked (rule F4).
type Seen = (Result<u64, u64>, u64, u64);

fn expected(flags: u32) -> Seen {
    let Entries { pde, pte } = model::after(flags);
    match model::end(flags) {
        End::Page(page) => (Ok(page), pde, pte),
        End::Fault(code) => (Err(code), pde & !(1 << 5), pte),
    }
}

fn seen(paging: &Paging, flags: u32) -> Seen {
    let Entries { pde, pte } = model::before(flags);
    // Both have been accessed: where the others have been too, nothing needs to be set.
    let pdpte = PD | if flags & PDPTE_NO_WRITE == 0 { 0x27 } else { 0x25 };
    let memory = Cells([PDPT | 0x27, pdpte, pde, pte].map(Cell::new));
    let walk = || translate(&memory, paging, ADDRESS, access(flags), Flags::Set);
    if flags & TWICE != 0 {
        // The first ends as the second does; what counts is the second.
        let _ = walk();
    }
    let end = match walk() {
        Ok(leaf) => Ok(leaf.frame()),
        Err(Fault::PageFault { code }) => Err(code.bits()),
        Err(other) => panic!("{flags:#x}: {other}"),
    };
    let [_, _, pde, pte] = memory.0.map(|cell| cell.get());
    (end, if end.is_ok() { pde } else { pde & !(1 << 5) }, pte)
}

/// How many cases there were, and how many of them end in a page.
#[derive(Default)]
struct Tally {
    cases: usize,
    pages: usize,
}

fn run(space: Space) -> Tally {
    let parts = on_two_threads(space, |processor| {
        let paging = paging(space.width, processor);
        let mut tally = Tally::default();
        for flags in space.cases(processor) {
            let expected = expected(flags);
            assert_eq!(seen(&paging, flags), expected, "{space:?}, case {flags:#x}");
            tally.cases += 1;
            tally.pages += usize::from(expected.0.is_ok());
        }
        tally
    });
    parts.into_iter().fold(Tally::default(), |sum, part| Tally {
        cases: sum.cases + part.cases,
        pages: sum.pages + part.pages,
    })
}

#[test]
fn c4_fault_code_and_entries_of_every_legal_case() {
    let spaces = if cfg!(debug_assertions) { &SPACES[..1] } else { &SPACES[..] };
    for &(space, size) in spaces {
        let start = std::time::Instant::now();
        let Tally { cases, pages } = run(space);
        println!(
            "{space:?}: {cases} cases, {pages} pages, {} faults, {:.1?}",
            cases - pages,
            start.elapsed()
        );
        assert_eq!(cases, size);
        assert!(pages > cases / 50 && pages < cases, "of {cases} cases {pages} end in a page");
    }
}
