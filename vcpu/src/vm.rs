//! What a VM and a vCPU are, whichever machine is behind them.

use std::ops::Range;

use memory_model::{MemoryError, Protection, RamBlock};
use slot_manager::SlotExecutor;

use crate::{Budget, Entry, Exit, HostView, Kick, Regs, SystemRegs, VcpuError};

/// A virtual machine: slots first, then vCPUs, then run.
pub trait Vm: HostView {
    /// The way to its memory slots, for a [`SlotManager`](slot_manager::SlotManager).
    fn slots(&self) -> Box<dyn SlotExecutor>;
    /// Makes the vCPU number `index`.
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, VcpuError>;
    /// Whether the interrupt controllers and timers of a PC are part of it: then a vCPU that halts sleeps until it is
    /// interrupted, or its budget ends, and only vCPU 0 runs before it is told to by another one (INIT, SIPI).
    fn has_irqchip(&self) -> bool {
        false
    }
    /// Lets something happen to the pages of `part` (whole pages, as offsets) of a block that slots show, while no vCPU runs.
    fn host_event(&self, block: &RamBlock, part: Range<u64>, event: HostEvent) -> Result<(), MemoryError> {
        match event {
            HostEvent::Discard => block.discard(part),
            HostEvent::Migrate => block.migrate(part),
            HostEvent::Protect(protection) => block.protect(part, protection),
        }
    }
    /// Raises or lowers one of 24 interrupt lines (`KVM_IRQ_LINE`). Without interrupt controllers nobody hears of it.
    fn set_irq_line(&self, _line: u8, _high: bool) -> Result<(), VcpuError> {
        Ok(())
    }
}

/// What happens to the host's memory behind a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostEvent {
    /// Pages are given back, and are zero when they come again (`MADV_DONTNEED`): what a balloon does.
    Discard,
    /// Pages get other frames and keep their bytes: what compaction does.
    Migrate,
    /// This process may use its pages in another way (`mprotect`).
    Protect(Protection),
}

/// A virtual processor.
pub trait Vcpu: Send {
    /// Goes on with the guest, answering the exit before with `entry`, until the guest needs its VMM or
    /// `budget` ends. Never blocks for longer than the budget's wall-clock time, whatever the guest does.
    fn run(&mut self, entry: Entry, budget: &Budget) -> Result<Exit, VcpuError>;
    /// Whether [`Budget::instructions`] bounds it.
    fn counts_instructions(&self) -> bool {
        true
    }
    /// The general registers. An exit that was not answered yet counts as done once its entry is given.
    fn regs(&mut self) -> Result<Regs, VcpuError>;
    /// Sets the general registers.
    fn set_regs(&mut self, regs: &Regs) -> Result<(), VcpuError>;
    /// Control, segment and table registers.
    fn system_regs(&mut self) -> Result<SystemRegs, VcpuError>;
    /// Sets control, segment and table registers.
    fn set_system_regs(&mut self, system: &SystemRegs) -> Result<(), VcpuError>;
    /// A handle by which another thread makes [`Vcpu::run`] come back with [`Exit::Kicked`].
    fn kick(&self) -> Kick;
}
