//! A machine under test, and the software VM as one.

use std::sync::Arc;

use ept::Levels;
use ept::verify::{Finding, Violation};
use memory_model::{AddrRange, Gpa, Hva, Pages, RamBlock};
use slot_manager::{Slot, SlotExecutor, SlotFlags, SlotId, SlotOp};
use vcpu::soft::host::{MmuNotifier, Protection};
use vcpu::soft::{Host, SecondLevel, SoftOptions, SoftVm};
use vcpu::{Budget, Entry, Exit, Regs, SystemRegs, Vcpu, Vm};

use crate::layout::{CHUNK, PAGE, RAM_BYTES, SLOTS};
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
    Column { name: "ept", new: |image| soft(image, SoftOptions::of(SecondLevel::EPT)) },
    Column {
        name: "ept of 5 levels, no large page executable",
        new: |image| {
            let (levels, accessed_dirty, execute_only) = (Levels::Five, true, false);
            let ept = SecondLevel::Ept { levels, accessed_dirty, execute_only };
            soft(image, SoftOptions { nx_huge_pages: true, ..SoftOptions::of(ept) })
        },
    },
    Column {
        name: "ept without A and D, holes not remembered, large pages split late",
        new: |image| {
            let (levels, accessed_dirty, execute_only) = (Levels::Four, false, false);
            let ept = SecondLevel::Ept { levels, accessed_dirty, execute_only };
            let (mmio_caching, eager_page_split) = (false, false);
            soft(image, SoftOptions { mmio_caching, eager_page_split, ..SoftOptions::of(ept) })
        },
    },
    Column {
        name: "ept, dirty pages known by D",
        new: |image| soft(image, SoftOptions { dirty_bits: true, ..SoftOptions::of(SecondLevel::EPT) }),
    },
    Column {
        name: "ept of few tables",
        new: |image| soft(image, SoftOptions { max_tables: Some(8), ..SoftOptions::of(SecondLevel::EPT) }),
    },
    Column { name: "npt", new: |image| soft(image, SoftOptions::of(SecondLevel::NPT)) },
    Column {
        name: "npt of 5 levels, few tables",
        new: |image| {
            let npt = SecondLevel::Npt { levels: Levels::Five };
            soft(image, SoftOptions { max_tables: Some(9), ..SoftOptions::of(npt) })
        },
    },
];

fn soft(image: &Image, options: SoftOptions) -> Box<dyn Machine> {
    Box::new(SoftMachine::new(image, &options))
}

/// The software VM.
pub struct SoftMachine {
    vm: SoftVm,
    vcpu: Box<dyn Vcpu>,
    executor: Box<dyn SlotExecutor>,
    block: Arc<RamBlock>,
    /// Where RAM begins in the block.
    base: u64,
    /// The slots as they are, and as they will be again.
    slots: [(bool, SlotFlags); SLOTS.len()],
}

impl SoftMachine {
    pub fn new(image: &Image, options: &SoftOptions) -> Self {
        let vm = SoftVm::with(options).expect("a VM");
        let block = RamBlock::anonymous("ram", RAM_BYTES + CHUNK + PAGE).expect("memory");
        let shift = if image.setting.shifted { PAGE } else { 0 };
        let base = block.hva().0.next_multiple_of(CHUNK) - block.hva().0 + shift;
        for (offset, bytes) in &image.image {
            block.write(base + offset, bytes).expect("the image fits");
        }
        if image.setting.huge_host {
            vm.kernel().host.map_pages(&block, Pages::Thp);
        }
        let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
        vcpu.set_system_regs(&image.system).expect("registers");
        vcpu.set_regs(&image.regs).expect("registers");
        let executor = vm.slots();
        let flags = SLOTS.map(|slot| match slot.readonly {
            true => SlotFlags::READONLY,
            false => SlotFlags::empty(),
        });
        let mut machine = Self { vm, vcpu, executor, block, base, slots: flags.map(|flags| (false, flags)) };
        (0..SLOTS.len()).for_each(|slot| machine.create(slot));
        machine
    }

    fn slot(&self, number: usize) -> Slot {
        let place = SLOTS[number];
        Slot {
            id: SlotId(number as u32),
            gpa: AddrRange::new(Gpa(place.gpa), place.bytes.into()).expect("slots lie below the end"),
            hva: self.hva(place.offset),
            flags: self.slots[number].1,
            name: place.name.into(),
            block: self.block.clone(),
        }
    }

    /// Where this process sees an offset of RAM.
    fn hva(&self, offset: u64) -> Hva {
        Hva(self.block.hva().0 + self.base + offset)
    }

    /// Lets something happen to pages of RAM.
    fn happen<T>(
        &mut self,
        first: u64,
        pages: u64,
        event: impl FnOnce(&Host, AddrRange<Hva>, &mut dyn MmuNotifier) -> T,
    ) {
        let range = AddrRange::new(self.hva(first), (pages * PAGE).into()).expect("not empty");
        self.vm.kernel().host_event(|host, notifier| event(host, range, notifier));
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

    fn unprotect(&mut self, page: u64) {
        self.happen(page, 1, |host, range, notifier| host.protect(range, Protection::ReadWrite, notifier));
    }

    fn set_logging(&mut self, number: usize, on: bool) {
        let slot = self.slot(number);
        self.slots[number].1.set(SlotFlags::LOG_DIRTY_PAGES, on);
        let flags = self.slots[number].1;
        self.execute(SlotOp::SetFlags { slot, flags });
    }
}

/// A large page in a slot that logs, which nobody can write: it stays until its first write where there are no tables left
/// to split it.
fn is_protected_large(finding: &Finding) -> bool {
    const WRITABLE: u64 = 1 << 1;
    let large = matches!(finding.violation, Violation::LoggedLarge { .. });
    large && finding.path.last().is_some_and(|leaf| leaf.entry & WRITABLE == 0)
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
            HostEvent::SwapOut { first, pages } => {
                self.happen(first, pages, |host, range, notifier| host.swap_out(range, notifier));
            }
            HostEvent::Migrate { first, pages } => {
                self.happen(first, pages, |host, range, notifier| host.migrate(range, notifier));
            }
            HostEvent::Merge(one, other) => {
                let (one, other) = (self.hva(one), self.hva(other));
                self.vm.kernel().host_event(|host, notifier| host.merge(one, other, notifier));
            }
            HostEvent::Collapse(chunk) => {
                self.happen(chunk, CHUNK / PAGE, |host, range, notifier| host.collapse(range, notifier));
            }
            HostEvent::Split(chunk) => {
                self.happen(chunk, CHUNK / PAGE, |host, range, notifier| host.split(range, notifier));
            }
            HostEvent::Protect { page, all } => {
                let protection = if all { Protection::None } else { Protection::ReadOnly };
                self.happen(page, 1, |host, range, notifier| host.protect(range, protection, notifier));
            }
            HostEvent::Unprotect(page) => self.unprotect(page),
            HostEvent::Shield(page) => {
                self.happen(page, 1, |host, range, notifier| host.protect(range, Protection::None, notifier));
                self.unprotect(page);
            }
            HostEvent::Discard(page) => {
                self.happen(page, 1, |host, range, notifier| {
                    host.discard(range, notifier).expect("plain memory")
                });
            }
            HostEvent::Age(slot) => {
                let range = self.slot(slot).gpa;
                self.vm.kernel().age(range).expect("the MMU's own tables are in the host's memory");
            }
        }
    }

    fn collect(&mut self, slot: usize) -> Vec<u64> {
        let mut bitmap = vec![0; (SLOTS[slot].bytes / PAGE).div_ceil(64) as usize];
        self.vm.kernel().get_dirty_log(slot as u32, &mut bitmap).expect("the slot logs");
        bitmap
    }

    fn verify(&mut self) -> Result<(), String> {
        let found = self.vm.verify().map_err(|error| error.to_string())?;
        self.vm.kernel().host.check().map_err(|error| error.to_string())?;
        let tables = &found.tables;
        let excused = tables.findings.iter().filter(|finding| is_protected_large(finding)).count() as u64;
        if excused == tables.total() && found.stale.is_empty() { Ok(()) } else { Err(found.to_string()) }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) {
        self.block.read(self.base + offset, buf).expect("inside RAM");
    }
}
