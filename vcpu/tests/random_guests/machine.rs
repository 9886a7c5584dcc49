//! A machine under test, and the software VM as one.

use std::sync::Arc;

use ept::verify::{DirtyLog, Guest, HostPage, HostPages, Policy, Slot as GuestSlot, Verifier};
use ept::{Kind, Levels, Paging};
use memory_model::{AddrRange, Gpa, Hpa, Hva, RamBlock};
use slot_manager::{Slot, SlotExecutor, SlotFlags, SlotId, SlotOp};
use vcpu::soft::{SecondLevel, SoftMmu, SoftOptions, SoftVm};
use vcpu::{Budget, Entry, Exit, Regs, SystemRegs, Vcpu, Vm};

use crate::compact::Compact;
use crate::layout::{PAGE, RAM_BYTES, SLOTS};
use crate::lower::Guest as Image;
use crate::program::HostEvent;

/// What every machine is asked.
pub trait Machine {
    /// Executes one instruction, or an exception instead; `entry` answers the exit before.
    fn step(&mut self, entry: Entry, budget: &Budget) -> Exit;
    fn state(&mut self) -> (Regs, SystemRegs);
    /// Lets the host do something that has an effect.
    fn host(&mut self, event: HostEvent);
    /// Reads the dirty log of a slot that logs; a bit a page. From now on it is anew.
    fn collect(&mut self, slot: usize) -> Vec<u64>;
    /// All that is wrong with the second-level tables.
    fn verify(&mut self) -> Result<(), String>;
    /// Reads RAM.
    fn read(&self, offset: u64, buf: &mut [u8]);
}

/// A machine by its name.
pub struct Column {
    pub name: &'static str,
    pub new: fn(&Image) -> Box<dyn Machine>,
}

/// All machines.
pub const COLUMNS: &[Column] = &[
    Column { name: "ept", new: |image| soft(image, SecondLevel::EPT) },
    Column {
        name: "ept, 5 levels",
        new: |image| {
            let (accessed_dirty, execute_only) = (true, false);
            soft(image, SecondLevel::Ept { levels: Levels::Five, accessed_dirty, execute_only })
        },
    },
    Column {
        name: "ept without A and D",
        new: |image| {
            let (accessed_dirty, execute_only) = (false, false);
            soft(image, SecondLevel::Ept { levels: Levels::Four, accessed_dirty, execute_only })
        },
    },
    Column { name: "npt", new: |image| soft(image, SecondLevel::NPT) },
];

fn soft(image: &Image, second_level: SecondLevel) -> Box<dyn Machine> {
    Box::new(SoftMachine::new(image, &SoftOptions { second_level }))
}

/// The software VM.
pub struct SoftMachine {
    vm: SoftVm,
    vcpu: Box<dyn Vcpu>,
    executor: Box<dyn SlotExecutor>,
    block: Arc<RamBlock>,
    /// The slots as they are, and as they will be again.
    slots: [(bool, SlotFlags); SLOTS.len()],
}

impl SoftMachine {
    pub fn new(image: &Image, options: &SoftOptions) -> Self {
        let vm = SoftVm::with(options).expect("a VM");
        let block = RamBlock::anonymous("ram", RAM_BYTES).expect("memory");
        for (offset, bytes) in &image.image {
            block.write(*offset, bytes).expect("the image fits");
        }
        let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
        vcpu.set_system_regs(&image.system).expect("registers");
        vcpu.set_regs(&image.regs).expect("registers");
        let executor = vm.slots();
        // Reading a log does not clear it: the verifier reads it as often as it likes.
        let flags = SLOTS.map(|slot| match slot.readonly {
            true => SlotFlags::READONLY,
            false => SlotFlags::empty(),
        });
        let mut machine = Self { vm, vcpu, executor, block, slots: flags.map(|flags| (false, flags)) };
        machine.vm.kernel().memslots.enable_manual_protect(1).expect("logs can be kept");
        (0..SLOTS.len()).for_each(|slot| machine.create(slot));
        machine
    }

    fn slot(&self, number: usize) -> Slot {
        let place = SLOTS[number];
        Slot {
            id: SlotId(number as u32),
            gpa: AddrRange::new(Gpa(place.gpa), place.bytes.into()).expect("slots lie below the end"),
            hva: Hva(self.block.hva().0 + place.offset),
            flags: self.slots[number].1,
            name: place.name.into(),
            block: self.block.clone(),
        }
    }

    fn execute(&mut self, op: SlotOp) {
        self.executor.execute(&op).unwrap_or_else(|error| panic!("{op}: {error}"));
    }

    fn create(&mut self, number: usize) {
        self.slots[number].0 = true;
        self.execute(SlotOp::Create(self.slot(number)));
    }

    fn delete(&mut self, number: usize) {
        self.slots[number].0 = false;
        self.execute(SlotOp::Delete(self.slot(number)));
    }

    fn set_logging(&mut self, number: usize, on: bool) {
        let slot = self.slot(number);
        self.slots[number].1.set(SlotFlags::LOG_DIRTY_PAGES, on);
        let flags = self.slots[number].1;
        self.execute(SlotOp::SetFlags { slot, flags });
    }

    fn logs(&self, number: usize) -> bool {
        let (present, flags) = self.slots[number];
        present && flags.contains(SlotFlags::LOG_DIRTY_PAGES)
    }

    /// The log as it is.
    fn log(&self, number: usize) -> Vec<u64> {
        let mut bitmap = vec![0; (SLOTS[number].bytes / PAGE).div_ceil(64) as usize];
        self.vm.kernel().get_dirty_log(number as u32, &mut bitmap).expect("the slot logs");
        bitmap
    }
}

impl Machine for SoftMachine {
    fn step(&mut self, entry: Entry, budget: &Budget) -> Exit {
        self.vcpu.run(entry, &budget.instructions(1)).expect("every exit is answered as it should be")
    }

    fn state(&mut self) -> (Regs, SystemRegs) {
        (self.vcpu.regs().expect("registers"), self.vcpu.system_regs().expect("registers"))
    }

    fn host(&mut self, event: HostEvent) {
        match event {
            HostEvent::Replace(slot) => {
                self.delete(slot);
                self.create(slot);
            }
            HostEvent::Remove(slot) => self.delete(slot),
            HostEvent::Restore(slot) => self.create(slot),
            HostEvent::LogOn(slot) => self.set_logging(slot, true),
            HostEvent::LogOff(slot) => self.set_logging(slot, false),
            HostEvent::Collect(_) => {}
        }
    }

    fn collect(&mut self, slot: usize) -> Vec<u64> {
        let bitmap = self.log(slot);
        let pages = (SLOTS[slot].bytes / PAGE) as u32;
        self.vm.kernel().clear_dirty_log(slot as u32, 0, pages, &bitmap).expect("the slot logs");
        bitmap
    }

    fn verify(&mut self) -> Result<(), String> {
        let logs: Vec<_> = (0..SLOTS.len()).map(|slot| self.logs(slot).then(|| self.log(slot))).collect();
        let kernel = self.vm.kernel();
        let slots: Vec<_> = (0..SLOTS.len())
            .filter(|&number| self.slots[number].0)
            .map(|number| {
                let slot = self.slot(number);
                let memslot = ept::mmu::Memslot {
                    base: slot.gpa.first(),
                    bytes: SLOTS[number].bytes,
                    hva: slot.hva,
                    readonly: slot.flags.contains(SlotFlags::READONLY),
                    log_dirty: slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES),
                };
                let log = logs[number].as_deref().map_or(DirtyLog::Unknown, DirtyLog::Bitmap);
                GuestSlot { memslot, log }
            })
            .collect();
        let SoftMmu::Tdp(tdp) = &kernel.mmu;
        let kind = tdp.paging().format.kind();
        let compact = Compact::new(&kernel.frames, if kind == Kind::Ept { 0b111 } else { 0b001 });
        let root = Paging { root: compact.place(Hpa(tdp.paging().root)).0, ..*tdp.paging() };
        let pages: Vec<_> = (0..RAM_BYTES / PAGE)
            .map(|page| match kernel.frames.frame_of(Hva(self.block.hva().0 + page * PAGE)) {
                Some(frame) => HostPage::at(compact.place(frame)),
                None => HostPage::ABSENT,
            })
            .collect();
        let stats = tdp.stats();
        let tables: Vec<_> = tdp.shadow_pages().map(|page| compact.place(page.table)).collect();
        let guests = [Guest {
            process: 0,
            roots: &[root],
            shadows: &[],
            slots: &slots,
            host: &HostPages { hva: self.block.hva(), pages: &pages },
            policy: Policy::kvm(kind),
            leaves: Some([stats.pages_4k, stats.pages_2m, stats.pages_1g]),
            tables: Some(&tables),
            caches: None,
        }];
        let verifier =
            Verifier::new(&compact, &guests, compact.ram(), 20).map_err(|error| error.to_string())?;
        let report = verifier.report([verifier.work()]);
        if report.is_clean() { Ok(()) } else { Err(report.to_string()) }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) {
        self.block.read(offset, buf).expect("inside RAM");
    }
}
