//! A software x86-64 CPU: an interpreter of one instruction at a time over a [`Bus`].
//!
//! All integer and system instructions in real mode, 16- and 32-bit protected mode, compatibility mode and 64-bit
//! mode, without virtual-8086 mode, call gates and task switches; SSE and SSE2 without floating-point arithmetic. The
//! exact interpreter (`step`, `exec`) fetches and decodes each instruction anew; in 64-bit mode most instructions take
//! a quick path, which does the same (`quick`). A guest that changes its code is always seen right; translations are
//! the [`Bus`]'s to remember.
//! What it does not have ends in [`Exit::Unimplemented`] with nothing changed, never in a wrong result.
//!
//! Every instruction is atomic: if it faults, registers and memory are as before it. An instruction that
//! touches a device is executed again once the VMM has answered. Only where one access crosses from memory
//! into a device is the part in memory written before the device is asked, as KVM's emulator does.
//!
//! Between two instructions, interrupts (`events`): a timer's comes before the instruction at whose tick it is due, for
//! the quick path stops there.

mod alu;
mod cpuid;
mod debug;
mod descriptors;
mod events;
mod exceptions;
mod exec;
mod far;
mod frames;
mod interrupts;
mod memory;
mod modes;
mod msr;
mod operands;
mod quick;
mod returns;
mod segments;
mod step;
mod system_calls;
#[cfg(test)]
mod tests;
mod tss;

use std::time::Instant;

use ept::ProtectionKeys;
use iced_x86::Instruction;

use self::debug::DebugRegs;
use self::events::{Boundary, Shadow};
use self::exec::control_registers::LoadedPdptes;
use self::exec::sse::state::MXCSR;
use self::exec::x87::CONTROL_WORD;
use self::memory::Transactions;
use self::msr::Msrs;
use self::quick::{Quick, Then};
use self::step::Step;
use super::{Bus, Paging};
use crate::{Budget, Entry, Exit, Limit, Regs, SystemRegs, cr0, rflags};

pub use self::cpuid::{Cpuid, PHYSICAL_ADDRESS_BITS, Vendor};

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
    /// XMM0 to XMM15.
    pub xmm: [u128; 16],
    /// What `CPUID` tells, and what is there because of it.
    pub cpuid: Cpuid,
    msrs: Msrs,
    debug: DebugRegs,
    pkru: u32,
    xcr0: u64,
    x87_control: u16,
    mxcsr: u32,
    pdptes: LoadedPdptes,
    retired: u64,
    /// The time, in ticks: one for each instruction, whether it is retired or ends in an exception.
    clock: u64,
    /// Of the last instruction.
    shadow: Shadow,
    /// Breakpoints that the last instruction has met and that its shadow holds back, as in DR6.
    held_breakpoints: u64,
    transactions: Transactions,
    /// The instruction to go on with: it waits for a device, repeats, or is decoded already.
    unfinished: Option<Instruction>,
    quick: Box<Quick>,
}

impl Cpu {
    /// A processor in this state.
    pub fn new(regs: Regs, system: SystemRegs) -> Self {
        Self {
            regs: Regs { rflags: regs.rflags | rflags::FIXED, ..regs },
            system,
            xmm: [0; 16],
            cpuid: Cpuid::default(),
            msrs: Msrs::default(),
            debug: DebugRegs::default(),
            pkru: 0,
            xcr0: 1,
            x87_control: CONTROL_WORD,
            mxcsr: MXCSR,
            pdptes: LoadedPdptes::default(),
            retired: 0,
            clock: 0,
            shadow: Shadow::None,
            held_breakpoints: 0,
            transactions: Transactions::new(),
            unfinished: None,
            quick: Box::default(),
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
        if self.has_pae_paging() && self.pdptes.cr3 != Some(self.system.cr3) {
            // The VMM has set CR3. Pointers that it could not have loaded lead nowhere.
            self.pdptes = LoadedPdptes { cr3: Some(self.system.cr3), ..LoadedPdptes::default() };
            let _ = Step::new(self, bus).load_pdptes();
        }
        self.clock = bus.interrupts(self.clock).map_or(self.clock, |interrupts| interrupts.now());
        let exit = self.run_steps(bus, budget);
        // The time is the VM's.
        let _ = bus.interrupts(self.clock);
        Ok(exit)
    }

    fn run_steps<B: Bus>(&mut self, bus: &mut B, budget: &Budget) -> Exit {
        let (mut steps, mut look) = (0, 0);
        while steps < budget.instructions {
            if steps >= look && Instant::now() >= budget.deadline {
                return Exit::BudgetExceeded(Limit::WallClock);
            }
            look = look.max(steps + 1).next_multiple_of(CLOCK_PERIOD);
            let undisturbed = match self.boundary(bus) {
                Boundary::Run(most) => most,
                Boundary::Entered => {
                    steps += 1;
                    continue;
                }
                Boundary::Exit(exit) => return exit,
            };
            if self.may_be_quick() {
                let ran = quick::run(self, bus, (budget.instructions.min(look) - steps).min(undisturbed));
                steps += ran.count;
                match ran.then {
                    Then::Nothing => continue,
                    Then::Exact(decoded) => self.unfinished = decoded,
                }
            }
            if let Some(exit) = Step::new(self, bus).run() {
                return exit;
            }
            steps += 1;
        }
        Exit::BudgetExceeded(Limit::Instructions)
    }

    /// Whether it is in 64-bit mode, and nothing must be looked at between two instructions.
    fn may_be_quick(&self) -> bool {
        self.in_64_bit_mode()
            && self.regs.rflags & (rflags::TF | rflags::RF) == 0
            && self.shadow == Shadow::None
            && self.unfinished.is_none()
            && self.transactions.is_empty()
            && !self.checks_alignment()
            && !self.debug.enabled()
    }

    /// For the program's own accesses.
    fn paging(&self) -> Paging {
        let SystemRegs { cr0, cr3, cr4, efer, .. } = self.system;
        let ac = self.regs.rflags & rflags::AC != 0;
        let keys = ProtectionKeys { pkru: self.pkru, pkrs: self.msrs.pkrs as u32 };
        let pdptes = if self.has_pae_paging() { self.pdptes.entries } else { [0; 4] };
        Paging { cr0, cr3, cr4, efer, keys, pdptes, user: self.system.cpl() == 3, ac }
    }

    /// For the processor's accesses to descriptor tables and the TSS.
    fn implicit_paging(&self) -> Paging {
        Paging { user: false, ac: false, ..self.paging() }
    }

    fn checks_alignment(&self) -> bool {
        self.regs.rflags & rflags::AC != 0 && self.system.cr0 & cr0::AM != 0 && self.system.cpl() == 3
    }

    /// The time-stamp counter: it runs with the clock.
    fn tsc(&self) -> u64 {
        self.clock.wrapping_add(self.msrs.tsc_offset)
    }
}
