//! Dirty logs, and the leaves below them: a page whose next write is to be logged may not be written, or is not marked as dirty
//! where the processor logs what it marks (page-modification logging); and what was written is in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ept::Rights;
use ept::live::{LiveLeaf, LiveTables, LiveVm, SecondLevel};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{Gpa, PageSize, Pages, RamBlock, RamOptions};
use slot_manager::{Capability, DirtyLog, DirtyMethod, Errno, Slot, SlotFlags, SlotOp};
use vcpu::{Entry, Exit, Gpr};

use crate::guest::{Guest, slot, start};
use crate::live::pagemap;
use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live];
    a_bitmap_has_what_was_written_and_reading_it_protects;
    &[Need::Live, Need::Capability(Capability::MANUAL_DIRTY_LOG_PROTECT2)];
    pages_are_protected_when_they_are_cleared_by_hand,
    a_log_that_begins_full_protects_nothing_before_it_is_cleared;
    &[Need::Live, Need::Capability(Capability::DIRTY_LOG_RING)];
    a_ring_has_what_was_written_and_resetting_it_protects,
    a_ring_that_is_full_brings_the_guest_out,
);

const PAGE: u64 = PageSize::Size4K.bytes();
const HERE: u64 = 0x80_0000;
const PAGES: u64 = 1024;

type Set = BTreeSet<u64>;

/// Writes to each RDX'th byte from RSI to RDI, and comes out.
fn write(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    a.set_label(&mut next)?;
    a.inc(qword_ptr(rsi))?;
    a.add(rsi, rdx)?;
    a.cmp(rsi, rdi)?;
    a.jb(next)?;
    a.out(0xf4, al)
}

struct Logged {
    guest: Guest,
    vm: LiveVm,
    block: Arc<RamBlock>,
    slot: Slot,
}

impl Logged {
    fn new(method: DirtyMethod) -> Self {
        let mut guest = Guest::ring3_logged(method, write);
        let options = RamOptions { pages: Pages::Small, ..RamOptions::default() };
        let block = RamBlock::create("block", PAGES * PAGE, options).unwrap();
        let slot = Slot { flags: SlotFlags::LOG_DIRTY_PAGES, ..slot(1, HERE, &block) };
        guest.slots.execute(&SlotOp::Create(slot.clone())).unwrap();
        Self { vm: guest.live(), guest, block, slot }
    }

    /// Has the guest write to every `step`th page.
    fn start(&mut self, step: u64) -> Exit {
        let mut regs = start();
        (regs[Gpr::Rsi], regs[Gpr::Rdi], regs[Gpr::Rdx]) = (HERE, HERE + PAGES * PAGE, step * PAGE);
        self.guest.vcpu.set_regs(&regs).unwrap();
        self.guest.run(Entry::Resume)
    }

    fn write(&mut self, step: u64) -> Set {
        assert!(matches!(self.start(step), Exit::IoOut { port: 0xf4, .. }));
        (0..PAGES).step_by(step as usize).collect()
    }

    fn log<T>(&mut self, mut act: impl FnMut(&mut dyn DirtyLog) -> Result<T, Errno>) -> T {
        let mut done = None;
        self.guest.slots.with_log(&mut |log| done = Some(act(log).unwrap()));
        done.expect("it was done")
    }

    /// `KVM_GET_DIRTY_LOG`.
    fn bitmap(&mut self) -> Set {
        let (id, mut bitmap) = (self.slot.id, Vec::new());
        self.log(|log| log.get_dirty_log(id, &mut bitmap));
        (0..PAGES).filter(|page| bitmap[*page as usize / 64] >> (page % 64) & 1 != 0).collect()
    }

    fn reap(&mut self) -> Set {
        self.log(|log| {
            let mut pages = Set::new();
            log.reap_dirty_rings(&mut |_, page| assert!(pages.insert(page), "page {page} is there twice"))?;
            Ok(pages)
        })
    }

    /// The next write goes unnoticed to these pages alone, and all leaves are as they should be. A leaf that the host has taken
    /// back, as it may at any time, says nothing.
    fn assert_unnoticed(&self, expected: &Set) {
        let tables = self.vm.tables().unwrap();
        let report = tables.check(&pagemap()).unwrap();
        assert!(report.is_clean(), "{report}");
        let page = |gpa: Gpa| (gpa.raw() - HERE) / PAGE;
        let of_slot = tables.leaves().filter(|leaf| self.slot.gpa.contains(leaf.gpa));
        let leaves: BTreeMap<_, _> =
            of_slot.map(|leaf| (page(leaf.gpa), write_goes_unnoticed(&tables, &leaf))).collect();
        assert!(!leaves.is_empty(), "the host has taken them all");
        let wrong: Set = leaves
            .iter()
            .filter(|&(page, &unnoticed)| unnoticed != expected.contains(page))
            .map(|(page, _)| *page)
            .collect();
        assert_eq!(wrong, Set::new(), "of {leaves:?}");
    }
}

/// Whether the next write by a leaf would not be in the log: it may be written, and is marked as dirty already where the processor
/// logs what it marks. None but Intel's do that, whose leaves need no protection then.
pub fn write_goes_unnoticed(tables: &LiveTables, leaf: &LiveLeaf) -> bool {
    let format = tables.root_of(0).expect("the guest has run").paging.format;
    let used = format.used(leaf.entry).filter(|_| tables.second_level() == SecondLevel::Ept);
    leaf.rights.contains(Rights::WRITE) && used.is_none_or(|used| used.written)
}

fn a_bitmap_has_what_was_written_and_reading_it_protects() {
    let mut logged = Logged::new(DirtyMethod::Bitmap);
    for step in [1, 3, 64] {
        let written = logged.write(step);
        logged.assert_unnoticed(&written);
        assert_eq!(logged.bitmap(), written);
        logged.assert_unnoticed(&Set::new());
    }
    assert_eq!(logged.bitmap(), Set::new());
    assert_eq!(logged.block.load_u64(0).unwrap(), 3);
}

fn pages_are_protected_when_they_are_cleared_by_hand() {
    let mut logged = Logged::new(DirtyMethod::ManualProtect { initially_set: false });
    let written = logged.write(1);
    assert_eq!(logged.bitmap(), written);
    // To read it changes nothing.
    logged.assert_unnoticed(&written);
    assert_eq!(logged.bitmap(), written);
    // The second 64 pages, of which every other one is cleared.
    let id = logged.slot.id;
    logged.log(|log| log.clear_dirty_log(id, 64, 64, &[0x5555_5555_5555_5555]));
    let cleared: Set = (64..128).step_by(2).collect();
    let kept: Set = written.difference(&cleared).copied().collect();
    logged.assert_unnoticed(&kept);
    assert_eq!(logged.bitmap(), kept);
    let again = logged.write(32);
    assert_eq!(logged.bitmap(), kept.union(&again).copied().collect());
}

fn a_log_that_begins_full_protects_nothing_before_it_is_cleared() {
    let mut logged = Logged::new(DirtyMethod::ManualProtect { initially_set: true });
    let all: Set = (0..PAGES).collect();
    assert_eq!(logged.bitmap(), all, "before anything was written");
    let written = logged.write(2);
    logged.assert_unnoticed(&written);
    let id = logged.slot.id;
    logged.log(|log| log.clear_dirty_log(id, 0, PAGES as u32, &[u64::MAX; PAGES as usize / 64]));
    logged.assert_unnoticed(&Set::new());
    assert_eq!(logged.bitmap(), Set::new());
    let again = logged.write(5);
    logged.assert_unnoticed(&again);
    assert_eq!(logged.bitmap(), again);
}

fn a_ring_has_what_was_written_and_resetting_it_protects() {
    let mut logged = Logged::new(DirtyMethod::Ring { bytes: 1 << 16 });
    for step in [1, 3, 64] {
        let written = logged.write(step);
        logged.assert_unnoticed(&written);
        assert_eq!(logged.reap(), written);
        logged.assert_unnoticed(&Set::new());
    }
    assert_eq!(logged.reap(), Set::new());
}

fn a_ring_that_is_full_brings_the_guest_out() {
    // As many entries, of which the kernel keeps some back: 64, and 512 for what a processor logs by itself.
    const ENTRY: u64 = 16;
    let mut logged = Logged::new(DirtyMethod::Ring { bytes: (PAGES * ENTRY) as u32 });
    let (mut seen, mut full, mut exit) = (Set::new(), 0, logged.start(1));
    while exit == Exit::DirtyRingFull {
        full += 1;
        seen.extend(logged.reap());
        exit = logged.guest.run(Entry::Resume);
    }
    assert!(matches!(exit, Exit::IoOut { port: 0xf4, .. }), "{exit:?}");
    seen.extend(logged.reap());
    assert!(full > 0, "the pages do not all fit");
    assert_eq!(seen, (0..PAGES).collect());
    logged.assert_unnoticed(&Set::new());
}
