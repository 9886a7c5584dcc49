//! One instruction: fetch, execute, and what follows if it can't be finished.

use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, FastFormatter, Instruction};
use memory_model::{Gpa, Gva};

use super::Cpu;
use super::exceptions::Exception;
use super::memory::{Linear, Request, bytes_in_page};
use crate::rflags;
use crate::soft::{AccessKind, Bus, BusFault};
use crate::{Exit, Limit, Regs};

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
    /// Set where the VMM must hear of a finished instruction (`OUT`, `HLT`).
    pub exit: Option<Exit>,
    /// Set where the next step is another iteration of the same instruction.
    pub repeat: bool,
}

impl<'a, B: Bus> Step<'a, B> {
    pub fn new(cpu: &'a mut Cpu, bus: &'a mut B) -> Self {
        Self { cpu, bus, instruction: Instruction::default(), exit: None, repeat: false }
    }

    /// Executes one instruction, up to and with the delivery of an exception.
    pub fn run(mut self) -> Option<Exit> {
        let before = self.cpu.regs;
        self.cpu.transactions.restart();
        match self.fetch().and_then(|()| self.execute_fetched()) {
            Ok(()) => self.retire(&before),
            Err(abort) => {
                self.cpu.regs = before;
                self.abandon(abort)
            }
        }
    }

    fn execute_fetched(&mut self) -> Result<(), Abort> {
        self.cpu.regs.rip = self.instruction.next_ip();
        self.cpu.regs.rflags &= !rflags::RF;
        self.execute()
    }

    fn retire(mut self, before: &Regs) -> Option<Exit> {
        self.cpu.retired += 1;
        self.cpu.transactions.clear();
        self.cpu.unfinished = self.repeat.then_some(self.instruction);
        let entered_handler = matches!(self.instruction.code(), Code::Int3 | Code::Int_imm8);
        if before.rflags & rflags::TF != 0 && !entered_handler {
            self.cpu.unfinished = None;
            let failed = self.raise(Exception::SINGLE_STEP);
            return self.exit.or(failed);
        }
        self.exit
    }

    fn abandon(mut self, abort: Abort) -> Option<Exit> {
        if let Abort::Device(_) = abort {
            self.cpu.unfinished = Some(self.instruction);
            return Some(self.exit_for(abort));
        }
        self.cpu.unfinished = None;
        self.cpu.transactions.clear();
        match abort {
            Abort::Exception(exception) => self.raise(exception),
            abort => Some(self.exit_for(abort)),
        }
    }

    /// The exit of anything but an exception.
    pub(super) fn exit_for(&self, abort: Abort) -> Exit {
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
                Exit::Unimplemented { rip: self.instruction.ip(), instruction }
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
        let mut bytes = [0; MAX_INSTRUCTION];
        let first = bytes_in_page(rip).min(MAX_INSTRUCTION);
        self.fetch_bytes(rip, &mut bytes[..first])?;
        let mut error = self.decode(&bytes[..first]);
        if error == DecoderError::NoMoreBytes && first < MAX_INSTRUCTION {
            self.fetch_bytes(rip.wrapping_add(first as u64), &mut bytes[first..])?;
            error = self.decode(&bytes);
        }
        match error {
            DecoderError::None => Ok(()),
            // Too long, or so long that it makes no difference.
            _ if self.instruction.len() == MAX_INSTRUCTION => Err(Exception::protection(0).into()),
            _ => Err(Exception::INVALID_OPCODE.into()),
        }
    }

    fn fetch_bytes(&mut self, address: u64, buf: &mut [u8]) -> Result<(), Abort> {
        let paging = self.cpu.paging();
        self.bus
            .read(&paging, Gva(address), buf, AccessKind::Fetch)
            .map_err(|fault| Abort::from_system(fault, Exception::protection(0)))
    }

    fn decode(&mut self, bytes: &[u8]) -> DecoderError {
        let mut decoder = Decoder::with_ip(64, bytes, self.cpu.regs.rip, DecoderOptions::NONE);
        decoder.decode_out(&mut self.instruction);
        decoder.last_error()
    }
}
