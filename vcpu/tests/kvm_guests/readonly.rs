//! Slots that a guest may read and not write: a write comes out as MMIO and changes nothing, until the slot is another.

use std::sync::Arc;

use ept::Rights;
use ept::live::LiveVm;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{Gpa, RamBlock};
use slot_manager::{Capability, Slot, SlotFlags, SlotOp};
use vcpu::{Entry, Exit, Gpr, MmioData};

use crate::guest::{Guest, slot, start};
use crate::live::pagemap;
use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live, Need::Capability(Capability::READONLY_MEM)];
    a_write_to_a_readonly_slot_comes_out_and_is_not_done,
    a_slot_that_becomes_readonly_and_back_has_leaves_to_match,
);

const HERE: u64 = 0x80_0000;
const BYTES: u64 = 0x4000;

/// Reads a word, writes one more than it, and comes out with what it has read in RAX.
fn count(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, qword_ptr(HERE))?;
    a.lea(rcx, qword_ptr(rax + 1))?;
    a.mov(qword_ptr(HERE), rcx)?;
    a.out(0xf4, al)
}

struct Running {
    guest: Guest,
    vm: LiveVm,
    block: Arc<RamBlock>,
}

impl Running {
    fn new() -> Self {
        let guest = Guest::ring3(count);
        let block = RamBlock::anonymous("block", BYTES).unwrap();
        block.write(0, &7u64.to_le_bytes()).unwrap();
        Self { vm: guest.live(), guest, block }
    }

    fn slot(&self, flags: SlotFlags) -> Slot {
        Slot { flags, ..slot(1, HERE, &self.block) }
    }

    fn run(&mut self) -> Exit {
        self.guest.vcpu.set_regs(&start()).unwrap();
        self.guest.run(Entry::Resume)
    }

    /// What the leaves of the first page grant, of which shadow paging may have several; all leaves are as they should be.
    fn rights(&self) -> Vec<Rights> {
        let tables = self.vm.tables().unwrap();
        let report = tables.check(&pagemap()).unwrap();
        assert!(report.is_clean(), "{report}");
        tables.leaves().filter(|leaf| leaf.gpa == Gpa(HERE)).map(|leaf| leaf.rights).collect()
    }

    /// A write of `value` comes out, and after it the guest goes on.
    fn assert_not_written(&mut self, value: u64) {
        let data = MmioData::new(&(value + 1).to_le_bytes()).unwrap();
        assert_eq!(self.run(), Exit::MmioWrite { gpa: Gpa(HERE), data });
        assert!(matches!(self.guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, .. }));
        assert_eq!((self.guest.regs()[Gpr::Rax], self.block.load_u64(0).unwrap()), (value, value));
        let rights = self.rights();
        assert!(rights.iter().all(|rights| rights.contains(Rights::READ) && !rights.contains(Rights::WRITE)));
        assert!(!rights.is_empty(), "the read has made a leaf");
    }

    fn assert_written(&mut self, value: u64) {
        assert!(matches!(self.run(), Exit::IoOut { port: 0xf4, .. }));
        assert_eq!(self.block.load_u64(0).unwrap(), value + 1);
        let rights = self.rights();
        assert!(rights.iter().any(|rights| rights.contains(Rights::WRITE)), "{rights:?}");
    }
}

fn a_write_to_a_readonly_slot_comes_out_and_is_not_done() {
    let mut running = Running::new();
    running.guest.slots.execute(&SlotOp::Create(running.slot(SlotFlags::READONLY))).unwrap();
    running.assert_not_written(7);
    running.assert_not_written(7);
    // What its owner writes the guest sees.
    running.block.write(0, &9u64.to_le_bytes()).unwrap();
    running.assert_not_written(9);
}

fn a_slot_that_becomes_readonly_and_back_has_leaves_to_match() {
    let mut running = Running::new();
    let [plain, readonly] = [SlotFlags::empty(), SlotFlags::READONLY].map(|flags| running.slot(flags));
    running.guest.slots.execute(&SlotOp::Create(plain.clone())).unwrap();
    let flip = |running: &mut Running, from: &Slot, to: &Slot| {
        // KVM has no other way.
        running.guest.slots.execute(&SlotOp::Delete(from.clone())).unwrap();
        assert_eq!(running.rights(), [], "the leaves have gone with the slot");
        running.guest.slots.execute(&SlotOp::Create(to.clone())).unwrap();
    };
    for value in (7..27).step_by(2) {
        running.assert_written(value);
        flip(&mut running, &plain, &readonly);
        running.assert_not_written(value + 1);
        flip(&mut running, &readonly, &plain);
        running.assert_written(value + 1);
    }
}
