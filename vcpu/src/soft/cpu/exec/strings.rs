//! String instructions. One step is one iteration, so that none runs unbounded.

use iced_x86::{Code, OpKind};

use super::Outcome;
use crate::soft::cpu::alu::{self, STATUS, Width};
use crate::soft::cpu::operands::memory_width;
use crate::soft::cpu::segments::{Logical, SegmentName};
use crate::soft::cpu::step::Step;
use crate::soft::{AccessKind, Bus};
use crate::{Gpr, rflags};

/// What one iteration does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Move,
    Store,
    Load,
    Compare,
    Scan,
    Input,
    Output,
}

impl Operation {
    fn of(code: Code) -> Option<Self> {
        use Code::*;
        Some(match code {
            Movsb_m8_m8 | Movsw_m16_m16 | Movsd_m32_m32 | Movsq_m64_m64 => Self::Move,
            Stosb_m8_AL | Stosw_m16_AX | Stosd_m32_EAX | Stosq_m64_RAX => Self::Store,
            Lodsb_AL_m8 | Lodsw_AX_m16 | Lodsd_EAX_m32 | Lodsq_RAX_m64 => Self::Load,
            Cmpsb_m8_m8 | Cmpsw_m16_m16 | Cmpsd_m32_m32 | Cmpsq_m64_m64 => Self::Compare,
            Scasb_AL_m8 | Scasw_AX_m16 | Scasd_EAX_m32 | Scasq_RAX_m64 => Self::Scan,
            Insb_m8_DX | Insw_m16_DX | Insd_m32_DX => Self::Input,
            Outsb_DX_m8 | Outsw_DX_m16 | Outsd_DX_m32 => Self::Output,
            _ => return None,
        })
    }

    fn reads_source(self) -> bool {
        matches!(self, Self::Move | Self::Load | Self::Compare | Self::Output)
    }

    fn uses_destination(self) -> bool {
        !matches!(self, Self::Load | Self::Output)
    }

    /// Whether `REPE` and `REPNE` look at ZF.
    fn compares(self) -> bool {
        matches!(self, Self::Compare | Self::Scan)
    }
}

impl<B: Bus> Step<'_, B> {
    /// Any string instruction; `None` for anything else.
    pub(super) fn string(&mut self) -> Option<Outcome> {
        Operation::of(self.instruction.code()).map(|operation| self.repeatable(operation))
    }

    fn repeatable(&mut self, operation: Operation) -> Outcome {
        let width = memory_width(&self.instruction)?;
        let addresses = self.string_address_width();
        let repeats = self.instruction.has_rep_prefix() || self.instruction.has_repne_prefix();
        if matches!(operation, Operation::Input | Operation::Output) {
            self.check_port(self.port_in_dx(), width)?;
        }
        let count = self.gpr(Gpr::Rcx, addresses);
        if repeats && count == 0 {
            return Ok(());
        }
        self.iteration(operation, width, addresses)?;
        if operation.reads_source() {
            self.advance(Gpr::Rsi, width, addresses);
        }
        if operation.uses_destination() {
            self.advance(Gpr::Rdi, width, addresses);
        }
        if repeats {
            self.set_gpr(Gpr::Rcx, addresses, count - 1);
            let stops =
                operation.compares() && self.has_flag(rflags::ZF) != self.instruction.has_rep_prefix();
            if count > 1 && !stops {
                self.repeat = true;
                self.cpu.regs.rip = self.instruction.ip();
            }
        }
        Ok(())
    }

    fn iteration(&mut self, operation: Operation, width: Width, addresses: Width) -> Outcome {
        // Only the source's segment can be overridden.
        let source = Logical { segment: self.operand_segment(), offset: self.gpr(Gpr::Rsi, addresses) };
        let destination = Logical { segment: SegmentName::Es, offset: self.gpr(Gpr::Rdi, addresses) };
        let accumulator = self.gpr(Gpr::Rax, width);
        match operation {
            Operation::Move => {
                let value = self.load(source, width, AccessKind::Read)?;
                self.store(destination, width, value)
            }
            Operation::Store => self.store(destination, width, accumulator),
            Operation::Load => {
                let value = self.load(source, width, AccessKind::Read)?;
                self.set_gpr(Gpr::Rax, width, value);
                Ok(())
            }
            Operation::Compare => {
                let first = self.load(source, width, AccessKind::Read)?;
                let second = self.load(destination, width, AccessKind::Read)?;
                self.change_flags(STATUS, alu::sub(width, first, second, false).1)
            }
            Operation::Scan => {
                let value = self.load(destination, width, AccessKind::Read)?;
                self.change_flags(STATUS, alu::sub(width, accumulator, value, false).1)
            }
            Operation::Input => {
                // The port is read only once its value is sure to have a place.
                self.check_access(destination, width.bytes(), AccessKind::Write)?;
                let value = self.read_port(self.port_in_dx(), width)?;
                self.store(destination, width, value)
            }
            Operation::Output => {
                let value = self.load(source, width, AccessKind::Read)?;
                self.write_port(self.port_in_dx(), width, value);
                Ok(())
            }
        }
    }

    fn string_address_width(&self) -> Width {
        for operand in 0..self.instruction.op_count() {
            return match self.instruction.op_kind(operand) {
                OpKind::MemorySegSI | OpKind::MemoryESDI => Width::Word,
                OpKind::MemorySegESI | OpKind::MemoryESEDI => Width::Dword,
                OpKind::MemorySegRSI | OpKind::MemoryESRDI => Width::Qword,
                _ => continue,
            };
        }
        Width::Qword
    }

    fn advance(&mut self, pointer: Gpr, width: Width, addresses: Width) {
        let bytes = width.bytes() as u64;
        let step = if self.has_flag(rflags::DF) { bytes.wrapping_neg() } else { bytes };
        let next = self.gpr(pointer, addresses).wrapping_add(step);
        self.set_gpr(pointer, addresses, next);
    }

    pub(super) fn port_in_dx(&self) -> u16 {
        self.gpr(Gpr::Rdx, Width::Word) as u16
    }
}
