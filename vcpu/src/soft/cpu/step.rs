//! One instruction: fetch, execute, and what follows if it can't be finished.

use std::ops::Range;

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FastFormatter, Instruction};
use memory_model::{Gpa, Gva};

use super::Cpu;
use super::debug::dr6;
use super::events::Shadow;
use super::exceptions::Exception;
use super::memory::{Linear, Request, bytes_in_page};
use crate::soft::{AccessKind, Bus, BusFault};
use crate::{Exit, Limit, Regs, rflags};

/// Why an instruction was not finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Abort {
    /// The guest is told.
    Exception(Exception),
    /// A device must answer first.
    Device(Request),
    /// The host has no page behind a slot.
    HostMemory(Gpa),
    /// Memory is about to change, and the instruction is to be started again.
    Retry,
    /// Code, or a table of the processor, lies where no memory is; or the second level is broken.
    Emulation,
    /// Not an instruction of this CPU.
    Unimplemented,
}

impl From<Exception> for Abort {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl Abort {
    /// For a data access; devices are dealt with before.
    pub(super) fn from_data(fault: BusFault, at: Linear) -> Self {
        Self::from_system(fault, at.not_canonical())
    }

    /// For a fetch, or an access of the processor to its own tables.
    pub(super) fn from_system(fault: BusFault, not_canonical: Exception) -> Self {
        match fault {
            BusFault::PageFault { error_code, address } => Exception::page_fault(error_code, address).into(),
            BusFault::NotCanonical => not_canonical.into(),
            BusFault::Mmio { .. } | BusFault::Broken => Self::Emulation,
            BusFault::HostMemory { gpa } => Self::HostMemory(gpa),
            BusFault::Retry => Self::Retry,
        }
    }
}

/// The longest instruction (SDM vol. 2A, 2.3.11).
const MAX_INSTRUCTION: usize = 15;
/// `KVM_INTERNAL_ERROR_EMULATION`.
const INTERNAL_ERROR_EMULATION: u32 = 1;

/// The execution of one instruction, or of one iteration of a repeated one.
///
/// It works on the CPU's registers; if it can't finish, they are put back. Memory is written last.
pub(super) struct Step<'a, B> {
    pub cpu: &'a mut Cpu,
    pub bus: &'a mut B,
    pub instruction: Instruction,
    /// What was fetched for it, and perhaps more.
    bytes: [u8; MAX_INSTRUCTION],
    /// Set where the VMM must hear of a finished instruction (`OUT`, `HLT`).
    pub exit: Option<Exit>,
    /// Set where the next step is another iteration of the same instruction.
    pub repeat: bool,
    /// Data breakpoints that the instruction has met, as in DR6.
    pub breakpoints: u64,
    /// Set where its own traps do not follow the instruction: it has entered a handler.
    pub no_trap: bool,
    /// The shadow that the instruction is in, of the one before.
    pub shadowed: Shadow,
}

impl<'a, B: Bus> Step<'a, B> {
    pub fn new(cpu: &'a mut Cpu, bus: &'a mut B) -> Self {
        Self {
            cpu,
            bus,
            instruction: Instruction::default(),
            bytes: [0; MAX_INSTRUCTION],
            exit: None,
            repeat: false,
            breakpoints: 0,
            no_trap: false,
            shadowed: Shadow::None,
        }
    }

    /// Executes one instruction, up to and with the delivery of an exception.
    pub fn run(mut self) -> Option<Exit> {
        let before = self.cpu.regs;
        self.shadowed = std::mem::take(&mut self.cpu.shadow);
        self.cpu.transactions.restart();
        let started = self.code_breakpoint().and_then(|()| self.fetch());
        match started.and_then(|()| self.execute_fetched()) {
            Ok(()) => self.retire(&before),
            Err(abort) => {
                self.cpu.regs = before;
                self.abandon(abort)
            }
        }
    }

    fn execute_fetched(&mut self) -> Result<(), Abort> {
        self.cpu.regs.rip = match self.cpu.in_64_bit_mode() {
            true => self.instruction.next_ip(),
            false => self.instruction.next_ip32().into(),
        };
        self.cpu.regs.rflags &= !rflags::RF;
        self.execute()
    }

    fn retire(mut self, before: &Regs) -> Option<Exit> {
        self.cpu.retired += 1;
        self.cpu.clock += 1;
        self.cpu.transactions.clear();
        self.cpu.unfinished = self.repeat.then_some(self.instruction);
        let mut causes = std::mem::take(&mut self.cpu.held_breakpoints);
        if self.cpu.shadow == Shadow::MovSs {
            // Its breakpoints come behind the next instruction, its single step not at all.
            self.cpu.held_breakpoints = causes | self.breakpoints;
            return self.exit;
        }
        if !self.no_trap {
            causes |= self.breakpoints | if self.traced(before) { dr6::BS } else { 0 };
        }
        if causes != 0 {
            self.cpu.unfinished = None;
            self.cpu.debug.report(causes);
            let failed = self.raise(Exception::DEBUG);
            // The trap ends a `HLT` that it follows.
            self.with_interrupts(|interrupts| interrupts.wake());
            return self.exit.or(failed);
        }
        self.exit
    }

    /// Whether TF asks for a trap behind this instruction: as it was before, but for `SYSCALL` and `SYSRET`,
    /// which are traced as what they lead to.
    fn traced(&self, before: &Regs) -> bool {
        let flags = match self.instruction.code() {
            Code::Syscall | Code::Sysretd | Code::Sysretq => self.cpu.regs.rflags,
            _ => before.rflags,
        };
        flags & rflags::TF != 0
    }

    fn abandon(mut self, abort: Abort) -> Option<Exit> {
        // What is started again is in the same shadow.
        self.cpu.shadow = if matches!(abort, Abort::Exception(_)) { Shadow::None } else { self.shadowed };
        if let Abort::Device(_) = abort {
            self.cpu.unfinished = Some(self.instruction);
            return Some(self.exit_for(abort));
        }
        self.cpu.unfinished = None;
        self.cpu.transactions.clear();
        match abort {
            Abort::Exception(exception) => {
                self.cpu.held_breakpoints = 0;
                self.cpu.clock += 1;
                self.raise(exception)
            }
            abort => Some(self.exit_for(abort)),
        }
    }

    /// The exit of anything but an exception.
    pub(super) fn exit_for(&mut self, abort: Abort) -> Exit {
        match abort {
            Abort::Device(Request::MmioRead { gpa, size }) => Exit::MmioRead { gpa, size },
            Abort::Device(Request::MmioWrite { gpa, data }) => Exit::MmioWrite { gpa, data },
            Abort::Device(Request::PortRead { port, size }) => Exit::IoIn { port, size, count: 1 },
            Abort::HostMemory(gpa) => Exit::MemoryFault { gpa: Some(gpa) },
            // Whoever runs the CPU lets others have a turn and goes on.
            Abort::Retry => Exit::BudgetExceeded(Limit::Instructions),
            Abort::Emulation | Abort::Exception(_) => {
                Exit::InternalError { suberror: INTERNAL_ERROR_EMULATION }
            }
            Abort::Unimplemented => {
                let mut instruction = String::new();
                FastFormatter::new().format(&self.instruction, &mut instruction);
                // It may have been decoded before.
                let len = self.instruction.len();
                let bytes = match self.fetch_bytes(self.linear_rip(), 0..len) {
                    Ok(()) => self.bytes[..len].to_vec(),
                    Err(_) => Vec::new(),
                };
                Exit::Unimplemented { rip: self.instruction.ip(), bytes, instruction }
            }
        }
    }

    /// Decodes the instruction at RIP into `self.instruction`, unless it is the one left unfinished. The
    /// second page of an instruction is read only if the first does not hold all of it.
    fn fetch(&mut self) -> Result<(), Abort> {
        let rip = self.cpu.regs.rip;
        if let Some(unfinished) = self.cpu.unfinished.take_if(|unfinished| unfinished.ip() == rip) {
            self.instruction = unfinished;
            return Ok(());
        }
        self.cpu.transactions.clear();
        // How much of CS is left, and how much of the page.
        let left = match self.cpu.in_64_bit_mode() {
            true => MAX_INSTRUCTION,
            false => {
                (u64::from(self.cpu.system.cs.limit) + 1).saturating_sub(rip).min(MAX_INSTRUCTION as u64)
                    as usize
            }
        };
        if left == 0 {
            return Err(Exception::protection(0).into());
        }
        let linear = self.linear_rip();
        let first = bytes_in_page(linear).min(left);
        self.fetch_bytes(linear, 0..first)?;
        let mut error = self.decode(first);
        if error == DecoderError::NoMoreBytes && first < left {
            self.fetch_bytes(linear, first..left)?;
            error = self.decode(left);
        }
        match error {
            DecoderError::None => Ok(()),
            // Past the end of CS; too long, or so long that it makes no difference.
            DecoderError::NoMoreBytes if left < MAX_INSTRUCTION => Err(Exception::protection(0).into()),
            _ if self.instruction.len() == MAX_INSTRUCTION => Err(Exception::protection(0).into()),
            _ => Err(Exception::INVALID_OPCODE.into()),
        }
    }

    /// The linear address of the instruction at RIP.
    pub(super) fn linear_rip(&self) -> u64 {
        let rip = self.cpu.regs.rip;
        match self.cpu.in_64_bit_mode() {
            true => rip,
            false => u64::from(self.cpu.system.cs.base.wrapping_add(rip) as u32),
        }
    }

    /// Reads the bytes `part` of the instruction at `linear`.
    fn fetch_bytes(&mut self, linear: u64, part: Range<usize>) -> Result<(), Abort> {
        let paging = self.cpu.paging();
        let address = Gva(linear.wrapping_add(part.start as u64));
        self.bus
            .read(&paging, address, &mut self.bytes[part], AccessKind::Fetch)
            .map_err(|fault| Abort::from_system(fault, Exception::protection(0)))
    }

    /// Decodes the first `len` bytes.
    fn decode(&mut self, len: usize) -> DecoderError {
        let bits = self.cpu.code_width().bits();
        let bytes = &self.bytes[..len];
        let mut decoder = Decoder::with_ip(bits, bytes, self.cpu.regs.rip, DecoderOptions::NONE);
        decoder.decode_out(&mut self.instruction);
        decoder.last_error()
    }
}
