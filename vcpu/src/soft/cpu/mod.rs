//! A software x86-64 CPU: an interpreter of one instruction at a time over a [`Bus`].
//!
//! 64-bit mode, rings 0 and 3, integer instructions. Each instruction is fetched and decoded
//! anew, so a guest that changes its code is always seen right; translations are the [`Bus`]'s to remember.
//! What it does not have ends in [`Exit::Unimplemented`] with nothing changed, never in a wrong result.
//!
//! Every instruction is atomic: if it faults, registers and memory are as before it. An instruction that
//! touches a device is executed again once the VMM has answered. Only where one access crosses from memory
//! into a device is the part in memory written before the device is asked, as KVM's emulator does.

mod alu;
mod cpuid;
mod descriptors;
mod exceptions;
mod exec;
mod memory;
mod msr;
mod operands;
mod step;
#[cfg(test)]
mod tests;

use std::time::Instant;

use iced_x86::Instruction;

use self::memory::Transactions;
use self::msr::Msrs;
use self::step::Step;
use super::{Bus, Paging};
use crate::{Budget, Entry, Exit, Limit, Regs, SystemRegs, cr0, cr4, efer, rflags};

pub use self::cpuid::PHYSICAL_ADDRESS_BITS;

/// An [`Entry`] that does not answer the last [`Exit`]. The CPU has not run.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CpuError {
    /// No read waits for data.
    #[error("the vCPU was given data, but no read waits for any")]
    UnexpectedData,
    /// A read waits for data of another length.
    #[error("the vCPU was given {given} bytes for a read of {expected}")]
    WrongLength {
        /// Bytes the read asked for.
        expected: usize,
        /// Bytes in the answer; 0 where there was none.
        given: usize,
    },
}

/// How many instructions run between two looks at the clock.
const CLOCK_PERIOD: u64 = 1024;

/// A processor's state, and what runs on it.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// General purpose registers, RIP and RFLAGS.
    pub regs: Regs,
    /// Control, segment and table registers.
    pub system: SystemRegs,
    msrs: Msrs,
    retired: u64,
    transactions: Transactions,
    /// The instruction to go on with: it waits for a device, or repeats.
    unfinished: Option<Instruction>,
}

impl Cpu {
    /// A processor in this state.
    pub fn new(regs: Regs, system: SystemRegs) -> Self {
        Self {
            regs: Regs { rflags: regs.rflags | rflags::FIXED, ..regs },
            system,
            msrs: Msrs::default(),
            retired: 0,
            transactions: Transactions::new(),
            unfinished: None,
        }
    }

    /// Instructions finished since the start. Each iteration of a repeated string instruction counts.
    pub fn retired(&self) -> u64 {
        self.retired
    }

    /// Runs until something needs the VMM or the budget is spent. `entry` answers the exit before.
    ///
    /// An instruction that ends in an exception is not retired, but counts against the budget: a guest
    /// whose handler faults for ever comes back too.
    pub fn run<B: Bus>(&mut self, bus: &mut B, entry: &Entry, budget: &Budget) -> Result<Exit, CpuError> {
        self.transactions.answer(entry)?;
        if !self.in_64_bit_mode() {
            let instruction = "any outside 64-bit mode".to_owned();
            return Ok(Exit::Unimplemented { rip: self.regs.rip, instruction });
        }
        for steps in 0..budget.instructions {
            if steps % CLOCK_PERIOD == 0 && Instant::now() >= budget.deadline {
                return Ok(Exit::BudgetExceeded(Limit::WallClock));
            }
            if let Some(exit) = Step::new(self, bus).run() {
                return Ok(exit);
            }
        }
        Ok(Exit::BudgetExceeded(Limit::Instructions))
    }

    fn in_64_bit_mode(&self) -> bool {
        let system = &self.system;
        let paged = cr0::PE | cr0::PG;
        system.cr0 & paged == paged && system.efer & efer::LMA != 0 && system.cs.long
    }

    /// For the program's own accesses.
    fn paging(&self) -> Paging {
        let SystemRegs { cr0, cr3, cr4, efer, .. } = self.system;
        let ac = self.regs.rflags & rflags::AC != 0;
        Paging { cr0, cr3, cr4, efer, user: self.system.cpl() == 3, ac }
    }

    /// For the processor's accesses to descriptor tables and the TSS.
    fn implicit_paging(&self) -> Paging {
        Paging { user: false, ac: false, ..self.paging() }
    }

    fn checks_alignment(&self) -> bool {
        self.regs.rflags & rflags::AC != 0 && self.system.cr0 & cr0::AM != 0 && self.system.cpl() == 3
    }

    /// Whether all bits above the linear address width copy its top bit.
    fn canonical(&self, address: u64) -> bool {
        let unused = if self.system.cr4 & cr4::LA57 != 0 { 64 - 57 } else { 64 - 48 };
        ((address << unused) as i64 >> unused) as u64 == address
    }

    /// The time-stamp counter: it ticks once an instruction.
    fn tsc(&self) -> u64 {
        self.retired.wrapping_add(self.msrs.tsc_offset)
    }
}
