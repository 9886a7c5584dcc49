//! The software machine's dirty log accounts for exactly the pages that its guest wrote.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use memory_model::{AddrRange, AddressSpace, Gpa, Gva, PageSize, RamBlock, RegionTree};
use slot_manager::{
    DirtyMethod, RESERVED_ENTRIES, Slot, SlotExecutor, SlotFlags, SlotManager, SlotOp, SlotRecord,
};
use vcpu::boot::{GuestMap, LongMode, Ring};
use vcpu::soft::{SecondLevel, SoftOptions, SoftVm};
use vcpu::{Budget, Entry, Exit, Gpr, Vcpu, Vm};

const PAGE: u64 = PageSize::Size4K.bytes();
const BYTES: u64 = 0x40_0000;
const CODE: u64 = 0x10_0000;
const NONE: [u64; 0] = [];
/// Where the guest writes; below are its tables and its code.
const DATA: u64 = 0x20_0000;
const WORDS: usize = (BYTES / PAGE / 64) as usize;

/// `1: mov [rsi], al; add rsi, rdx; cmp rsi, rdi; jb 1b; out 0xf4, al; jmp 1b`
const STRIDE: &[u8] = &[0x88, 0x06, 0x48, 0x01, 0xd6, 0x48, 0x39, 0xfe, 0x72, 0xf6, 0xe6, 0xf4, 0xeb, 0xf2];

/// Each way to know of a write: by write protection or by D, where the second level has it.
fn columns() -> Vec<SoftOptions> {
    let plain = SecondLevel::Ept { levels: ept::Levels::Four, accessed_dirty: false, execute_only: true };
    let both = [SecondLevel::EPT, plain, SecondLevel::NPT].map(SoftOptions::of);
    let both = both.into_iter().flat_map(|options| [options, SoftOptions { dirty_bits: true, ..options }]);
    both.chain([SoftOptions::of(SecondLevel::Shadow)]).collect()
}

struct Machine {
    slots: Arc<Mutex<SlotManager<Box<dyn SlotExecutor>>>>,
    vm: SoftVm,
    vcpu: Box<dyn Vcpu>,
    _space: AddressSpace,
}

impl Machine {
    fn new(options: &SoftOptions) -> Self {
        Self::by(options, DirtyMethod::Bitmap)
    }

    fn by(options: &SoftOptions, method: DirtyMethod) -> Self {
        let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
        let block = RamBlock::anonymous("ram", BYTES).unwrap();
        let add = |tree: &mut RegionTree| {
            let ram = tree.ram("ram", block.clone())?;
            tree.add(tree.root(), 0, ram)
        };
        space.update(add).unwrap();
        let vm = SoftVm::with(options).unwrap();
        let slots = Arc::new(Mutex::new(SlotManager::new(vm.slots())));
        slots.lock().unwrap().set_dirty_method(method).unwrap();
        space.register(slots.clone()).unwrap();
        block.write(CODE, STRIDE).unwrap();
        let all = GuestMap::identity(AddrRange::new(Gva(CODE), (BYTES - CODE).into()).unwrap());
        let guest = LongMode { entry: CODE, ring: Ring::Kernel, handlers: vec![], maps: vec![all] };
        let (regs, system) = guest.install(&space.view()).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_system_regs(&system).unwrap();
        vcpu.set_regs(&regs).unwrap();
        Self { slots, vm, vcpu, _space: space }
    }

    fn slot(&self) -> Slot {
        self.slots.lock().unwrap().registry().by_id(slot_manager::SlotId(0)).unwrap().clone()
    }

    fn set_log(&self, on: bool) {
        let now = self.vm.kernel().memslots.slots().by_id(self.slot().id).unwrap().flags;
        let flags = if on { SlotFlags::LOG_DIRTY_PAGES } else { SlotFlags::empty() };
        let op = SlotOp::SetFlags { slot: Slot { flags: now, ..self.slot() }, flags };
        self.vm.slots().execute(&op).unwrap();
    }

    /// The guest writes a byte to every `stride`-th page from `first` on.
    fn write(&mut self, first: u64, stride: u64) -> Vec<u64> {
        let mut regs = self.vcpu.regs().unwrap();
        regs[Gpr::Rsi] = DATA + first * PAGE + 0x123;
        regs[Gpr::Rdx] = stride * PAGE;
        regs[Gpr::Rdi] = BYTES;
        regs.rip = CODE;
        self.vcpu.set_regs(&regs).unwrap();
        let exit = loop {
            match self.run() {
                Exit::DirtyRingFull => self.slots.lock().unwrap().reap().unwrap(),
                exit => break exit,
            }
        };
        assert!(matches!(exit, Exit::IoOut { port: 0xf4, .. }), "{exit:?}");
        (DATA / PAGE + first..BYTES / PAGE).step_by(stride as usize).collect()
    }

    fn run(&mut self) -> Exit {
        self.vcpu.run(Entry::Resume, &Budget::time(Duration::from_secs(20))).unwrap()
    }

    /// The pages of the log, those of the data: the guest's tables get flags of their own.
    fn log(&self) -> Vec<u64> {
        let mut bitmap = [0; WORDS];
        self.vm.kernel().get_dirty_log(0, &mut bitmap).unwrap();
        pages(&bitmap)
    }

    #[track_caller]
    fn assert_clean(&self) {
        let found = self.vm.verify().unwrap();
        assert!(found.is_clean(), "{found}");
    }

    /// Clears 64 pages of the log.
    fn clear(&self, first_page: u64, mask: u64) {
        self.vm.kernel().clear_dirty_log(0, first_page, 64, &[mask]).unwrap();
    }
}

fn pages(bitmap: &[u64]) -> Vec<u64> {
    (DATA / PAGE..BYTES / PAGE).filter(|page| bitmap[(page / 64) as usize] >> (page % 64) & 1 != 0).collect()
}

#[test]
fn d1_a_log_has_exactly_the_pages_written_since_the_last_look() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        // Mapped writable before the log starts.
        machine.write(0, 1);
        machine.set_log(true);
        assert_eq!(machine.log(), NONE);
        for (first, stride) in [(3, 7), (3, 7), (0, 64), (511, 1), (0, 1), (5, 2)] {
            let written = machine.write(first, stride);
            assert_eq!(machine.log(), written, "every {stride}-th page from {first} on");
            assert_eq!(machine.log(), NONE, "read once is read");
        }
        // Off and on: what was not read is gone (the bitmap is a new one), what comes is logged.
        machine.write(0, 3);
        machine.set_log(false);
        machine.write(0, 1);
        machine.set_log(true);
        assert_eq!(machine.log(), NONE);
        let written = machine.write(1, 3);
        assert_eq!(machine.log(), written);
        machine.assert_clean();
    }
}

#[test]
fn d1_d3_with_manual_protect_a_page_is_logged_again_once_it_was_cleared() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        machine.vm.kernel().memslots.enable_manual_protect(1).unwrap();
        machine.set_log(true);
        let written = machine.write(0, 5);
        assert_eq!(machine.log(), written);
        assert_eq!(machine.log(), written, "reading clears nothing");
        // Of the first 64 pages only the even ones are cleared.
        machine.clear(DATA / PAGE, 0x5555_5555_5555_5555);
        let kept: Vec<_> =
            written.iter().copied().filter(|page| *page >= DATA / PAGE + 64 || page % 2 == 1).collect();
        assert_eq!(machine.log(), kept);
        machine.write(0, 5);
        assert_eq!(machine.log(), written, "cleared pages fault again");
        machine.assert_clean();
    }
}

#[test]
fn d2_a_log_that_starts_with_all_pages_dirty_protects_when_it_is_cleared() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        machine.vm.kernel().memslots.enable_manual_protect(3).unwrap();
        machine.write(0, 1);
        machine.set_log(true);
        let all: Vec<_> = (DATA / PAGE..BYTES / PAGE).collect();
        assert_eq!(machine.log(), all);
        machine.write(0, 1);
        for first_page in (0..BYTES / PAGE).step_by(64) {
            machine.clear(first_page, u64::MAX);
        }
        assert_eq!(machine.log(), NONE);
        let written = machine.write(9, 11);
        assert_eq!(machine.log(), written);
        machine.assert_clean();
    }
}

#[test]
fn a_move_keeps_the_log_and_what_is_written_at_the_new_place_joins_it() {
    for options in columns() {
        let mut machine = Machine::new(&options);
        machine.set_log(true);
        let written = machine.write(0, 9);
        let slot = Slot { flags: SlotFlags::LOG_DIRTY_PAGES, ..machine.slot() };
        let away = AddrRange::new(Gpa(1 << 32), slot.gpa.bytes()).unwrap();
        machine.vm.slots().execute(&SlotOp::Move { slot: slot.clone(), to: away }).unwrap();
        machine
            .vm
            .slots()
            .execute(&SlotOp::Move { slot: Slot { gpa: away, ..slot.clone() }, to: slot.gpa })
            .unwrap();
        assert_eq!(machine.vm.kernel().memslots.slots().by_gpa(Gpa(0)).unwrap().gpa(), slot.gpa);
        let more = machine.write(1, 9);
        let mut both = [written, more].concat();
        both.sort_unstable();
        assert_eq!(machine.log(), both);
        machine.assert_clean();
    }
}

#[test]
fn d5_a_vcpu_with_a_full_ring_comes_out_until_it_is_reaped_and_no_page_is_lost() {
    for options in columns() {
        // 256 entries.
        let mut machine = Machine::by(&options, DirtyMethod::Ring { bytes: 4096 });
        // Writable before the log starts.
        machine.write(0, 1);
        machine.set_log(true);
        let mut regs = machine.vcpu.regs().unwrap();
        (regs[Gpr::Rsi], regs[Gpr::Rdx], regs[Gpr::Rdi]) = (DATA, PAGE, BYTES);
        machine.vcpu.set_regs(&regs).unwrap();
        assert_eq!(machine.run(), Exit::DirtyRingFull);
        assert_eq!(machine.run(), Exit::DirtyRingFull, "nobody has reaped");
        let ring = machine.vm.kernel().memslots.dirty_ring(0).unwrap().clone();
        assert!(ring.used() >= ring.len() - RESERVED_ENTRIES && ring.used() < ring.len());
        let written = machine.write(0, 1);
        let collected = machine.slots.lock().unwrap().collect_all_dirty().unwrap();
        let data = collected.pages().map(|gpa| gpa.page_number()).filter(|page| *page >= DATA / PAGE);
        assert_eq!(data.collect::<Vec<_>>(), written);
        assert!(machine.slots.lock().unwrap().collect_all_dirty().unwrap().is_empty());
        machine.assert_clean();
    }
}
