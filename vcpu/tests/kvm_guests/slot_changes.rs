//! Slots that change under a vCPU that runs: what no slot shows is MMIO at once and has no leaf, and the guest goes on
//! where it was.

use std::sync::Arc;
use std::thread;

use ept::live::{LiveTables, LiveVm};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{AddrRange, Gpa, PageSize, Pages, RamBlock, RamOptions};
use slot_manager::{Slot, SlotExecutor, SlotFlags, SlotOp};
use vcpu::{Budget, Entry, Exit};

use crate::dirty_logs::write_goes_unnoticed;
use crate::guest::{Guest, PLENTY, slot};
use crate::live::{frame, pagemap};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live];
    a_slot_that_goes_under_a_guest_leaves_mmio_and_no_leaf,
    a_slot_that_moves_under_a_guest_is_not_where_it_was,
    a_guest_goes_on_while_its_slot_is_logged_and_not_logged,
);

const PAGE: u64 = PageSize::Size4K.bytes();
const PAGES: u64 = 64;
const BYTES: u64 = PAGES * PAGE;
/// Where the slot is that changes, and where else it can be.
const HERE: u64 = 0x80_0000;
const THERE: u64 = 0x100_0000;
const ROUNDS: u64 = 20;

/// Adds one to the first word of each page of the slot, without end.
fn add_for_ever(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut next) = (a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.mov(esi, HERE as u32)?;
    a.set_label(&mut next)?;
    a.inc(qword_ptr(rsi))?;
    a.add(esi, PAGE as u32)?;
    a.cmp(esi, (HERE + BYTES) as u32)?;
    a.jb(next)?;
    a.jmp(again)
}

struct Running {
    guest: Guest,
    vm: LiveVm,
    block: Arc<RamBlock>,
    slot: Slot,
}

impl Running {
    fn new() -> Self {
        let mut guest = Guest::ring3(add_for_ever);
        let vm = guest.live();
        let options = RamOptions { pages: Pages::Small, ..RamOptions::default() };
        let block = RamBlock::create("block", BYTES, options).unwrap();
        let slot = slot(1, HERE, &block);
        guest.slots.execute(&SlotOp::Create(slot.clone())).unwrap();
        Self { guest, vm, block, slot }
    }

    /// Runs the guest, and once it has been everywhere does `change`: what the guest comes out for. With `kick` that is
    /// the kick, after the guest has been everywhere once more.
    fn change(&mut self, kick: bool, change: impl FnOnce(&mut dyn SlotExecutor)) -> Exit {
        let Guest { vcpu, slots, .. } = &mut self.guest;
        let (block, kicks, budget) = (&self.block, vcpu.kick(), Budget::time(PLENTY));
        thread::scope(|scope| {
            let running = scope.spawn(|| vcpu.run(Entry::Resume, &budget).unwrap());
            let round = || {
                let last = BYTES - PAGE;
                let before = block.load_u64(last).unwrap();
                while block.load_u64(last).unwrap() < before + 2 {
                    assert!(!running.is_finished(), "the guest came out");
                    thread::yield_now();
                }
            };
            round();
            change(&mut **slots);
            if kick {
                round();
                kicks.kick();
            }
            running.join().unwrap()
        })
    }

    /// The tables, of which nothing is wrong.
    fn tables(&self) -> LiveTables {
        let tables = self.vm.tables().unwrap();
        let report = tables.check(&pagemap()).unwrap();
        assert!(report.is_clean(), "{report}");
        tables
    }

    /// Each page of the slot has a leaf, and the process's frame.
    fn assert_mapped(&self) {
        let tables = self.tables();
        for page in (0..BYTES).step_by(PAGE as usize) {
            let leaf = tables.leaves().find(|leaf| leaf.gpa == Gpa(HERE + page));
            assert_eq!(leaf.map(|leaf| leaf.hpa.raw()), frame(&self.block, page), "{page:#x}");
        }
    }

    /// The guest reads where its slot was; none of its pages has a leaf, here or there.
    fn assert_gone(&self, exit: Exit) {
        let Exit::MmioRead { gpa, size: 8 } = exit else { panic!("{exit:?}") };
        assert!((HERE..HERE + BYTES).contains(&gpa.raw()), "{gpa}");
        assert!(self.tables().leaves().all(|leaf| leaf.gpa < Gpa(HERE)));
    }

    /// Answers the read; the write that follows goes to no slot either.
    fn answer(&mut self) {
        let exit = self.guest.run(Entry::Data(7u64.to_le_bytes().to_vec()));
        assert!(matches!(exit, Exit::MmioWrite { data, .. } if data.value() == 8), "{exit:?}");
    }
}

fn a_slot_that_goes_under_a_guest_leaves_mmio_and_no_leaf() {
    let mut running = Running::new();
    let slot = running.slot.clone();
    for _ in 0..ROUNDS {
        let exit = running.change(false, |slots| slots.execute(&SlotOp::Delete(slot.clone())).unwrap());
        running.assert_gone(exit);
        running.answer();
        running.guest.slots.execute(&SlotOp::Create(slot.clone())).unwrap();
        assert_eq!(running.change(true, |_| {}), Exit::Kicked);
        running.assert_mapped();
    }
}

fn a_slot_that_moves_under_a_guest_is_not_where_it_was() {
    let mut running = Running::new();
    let (slot, to) = (running.slot.clone(), AddrRange::new(Gpa(THERE), BYTES.into()).unwrap());
    let moved = Slot { gpa: to, ..slot.clone() };
    for _ in 0..ROUNDS {
        let there = SlotOp::Move { slot: slot.clone(), to };
        let exit = running.change(false, |slots| slots.execute(&there).unwrap());
        running.assert_gone(exit);
        running.answer();
        let back = SlotOp::Move { slot: moved.clone(), to: slot.gpa };
        running.guest.slots.execute(&back).unwrap();
        assert_eq!(running.change(true, |_| {}), Exit::Kicked);
        running.assert_mapped();
    }
}

fn a_guest_goes_on_while_its_slot_is_logged_and_not_logged() {
    let mut running = Running::new();
    let plain = running.slot.clone();
    let logged = Slot { flags: SlotFlags::LOG_DIRTY_PAGES, ..plain.clone() };
    for _ in 0..ROUNDS {
        let on = SlotOp::SetFlags { slot: plain.clone(), flags: logged.flags };
        assert_eq!(running.change(true, |slots| slots.execute(&on).unwrap()), Exit::Kicked);
        running.assert_mapped();
        let mut bitmap = Vec::new();
        let mut read = |running: &mut Running| {
            let mut get = |log: &mut dyn slot_manager::DirtyLog| log.get_dirty_log(plain.id, &mut bitmap);
            running.guest.slots.with_log(&mut |log| get(log).unwrap());
            bitmap.clone()
        };
        assert_eq!(read(&mut running), [u64::MAX], "the guest has written all of them");
        // To read the log clears it, and protects the pages.
        assert_eq!(read(&mut running), [0]);
        let tables = running.tables();
        assert!(!tables.leaves().any(|leaf| leaf.gpa >= Gpa(HERE) && write_goes_unnoticed(&tables, &leaf)));
        let off = SlotOp::SetFlags { slot: logged.clone(), flags: plain.flags };
        assert_eq!(running.change(true, |slots| slots.execute(&off).unwrap()), Exit::Kicked);
        running.assert_mapped();
    }
}
