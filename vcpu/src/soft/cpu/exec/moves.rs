//! Data movement and the stack.

use iced_x86::{Code, OpKind, Register};

use super::Outcome;
use crate::Gpr;
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::events::Shadow;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::operands::{Place, memory_width};
use crate::soft::cpu::segments::SegmentName;
use crate::soft::cpu::step::{Abort, Step};
use crate::soft::{AccessKind, Bus};

/// A segment register as a destination: anything but CS.
fn loadable(register: Register) -> Result<SegmentName, Abort> {
    let name = SegmentName::of(register).filter(|&name| name != SegmentName::Cs);
    name.ok_or(Exception::INVALID_OPCODE.into())
}

impl<B: Bus> Step<'_, B> {
    pub(super) fn mov(&mut self) -> Outcome {
        match self.instruction.code() {
            Code::Mov_r32_cr | Code::Mov_r64_cr => self.mov_from_cr(),
            Code::Mov_cr_r32 | Code::Mov_cr_r64 => self.mov_to_cr(),
            Code::Mov_r32_dr | Code::Mov_r64_dr => self.mov_from_dr(),
            Code::Mov_dr_r32 | Code::Mov_dr_r64 => self.mov_to_dr(),
            Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => {
                let selector = self.selector(self.instruction.op_register(1))?;
                let place = self.place(0)?;
                self.write(place, selector.into())
            }
            Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => {
                let name = loadable(self.instruction.op_register(0))?;
                let selector = self.source(1, Width::Word)?;
                self.load_from_program(name, selector as u16)
            }
            _ => {
                let place = self.place(0)?;
                let value = self.source(1, place.width())?;
                self.write(place, value)
            }
        }
    }

    fn selector(&self, register: Register) -> Result<u16, Abort> {
        let name = SegmentName::of(register).ok_or(Abort::Unimplemented)?;
        Ok(self.cpu.system.segment(name).selector)
    }

    pub(super) fn movzx(&mut self) -> Outcome {
        let source = self.place(1)?;
        let value = self.read(source)?;
        let place = self.place(0)?;
        self.write(place, value)
    }

    pub(super) fn movsx(&mut self) -> Outcome {
        let source = self.place(1)?;
        let value = source.width().sign_extend(self.read(source)?);
        let place = self.place(0)?;
        self.write(place, value & place.width().mask())
    }

    pub(super) fn movbe(&mut self) -> Outcome {
        let (place, source) = (self.place(0)?, self.place(1)?);
        let swapped = self.read(source)?.swap_bytes() >> (64 - source.width().bits());
        self.write(place, swapped)
    }

    pub(super) fn lea(&mut self) -> Outcome {
        let place = self.place(0)?;
        let address = self.effective_address();
        self.write(place, address)
    }

    pub(super) fn xchg(&mut self) -> Outcome {
        let (a, b) = (self.place(0)?, self.place(1)?);
        let (old_a, old_b) = (self.read_to_modify(a)?, self.read_to_modify(b)?);
        // Memory first: a register write can't fail.
        let [(first, value), (second, other)] = match b {
            Place::Memory(..) => [(b, old_a), (a, old_b)],
            Place::Gpr(_) => [(a, old_b), (b, old_a)],
        };
        self.write(first, value)?;
        self.write(second, other)
    }

    /// Of a 16-bit register the SDM leaves the result undefined; processors clear it.
    pub(super) fn bswap(&mut self) -> Outcome {
        let place = self.place(0)?;
        let value = self.read(place)?;
        match place.width() {
            Width::Dword => self.write(place, (value as u32).swap_bytes().into()),
            Width::Qword => self.write(place, value.swap_bytes()),
            _ => self.write(place, 0),
        }
    }

    pub(super) fn is_prefetch_of_register(&self) -> bool {
        use Code::{Reservednop_rm16_r16_0F0D, Reservednop_rm32_r32_0F0D, Reservednop_rm64_r64_0F0D};
        let code = self.instruction.code();
        matches!(code, Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D)
    }

    pub(super) fn xlat(&mut self) -> Outcome {
        let value = self.load(self.memory_operand(), Width::Byte, AccessKind::Read)?;
        self.set_gpr(Gpr::Rax, Width::Byte, value);
        Ok(())
    }

    /// The size of a `PUSH` or `POP` without an operand to tell it.
    fn stack_operand_width(&self) -> Option<Width> {
        use Code::*;
        Some(match self.instruction.code() {
            Pushw_ES | Pushw_CS | Pushw_SS | Pushw_DS | Pushw_FS | Pushw_GS | Push_imm16 | Pushw_imm8 => {
                Width::Word
            }
            Pushd_ES | Pushd_CS | Pushd_SS | Pushd_DS | Pushd_FS | Pushd_GS | Pushd_imm32 | Pushd_imm8 => {
                Width::Dword
            }
            Pushq_FS | Pushq_GS | Pushq_imm32 | Pushq_imm8 => Width::Qword,
            Popw_ES | Popw_SS | Popw_DS | Popw_FS | Popw_GS => Width::Word,
            Popd_ES | Popd_SS | Popd_DS | Popd_FS | Popd_GS => Width::Dword,
            Popq_FS | Popq_GS => Width::Qword,
            _ => return None,
        })
    }

    pub(super) fn push_operand(&mut self) -> Outcome {
        let (width, value) = match self.stack_operand_width() {
            Some(width) if self.instruction.op_kind(0) == OpKind::Register => {
                (width, self.selector(self.instruction.op_register(0))?.into())
            }
            Some(width) => (width, self.source(0, width)?),
            None => {
                let place = self.place(0)?;
                (place.width(), self.read(place)?)
            }
        };
        self.push(width, value)
    }

    /// `MOV` and `POP` of a segment register. One of SS keeps traps and interrupts off the next instruction.
    fn load_from_program(&mut self, name: SegmentName, selector: u16) -> Outcome {
        self.load_segment(name, selector)?;
        if name == SegmentName::Ss {
            self.cast_shadow(Shadow::MovSs);
        }
        Ok(())
    }

    pub(super) fn pop_operand(&mut self) -> Outcome {
        if let Some(width) = self.stack_operand_width() {
            let selector = self.pop(width)?;
            let name = loadable(self.instruction.op_register(0))?;
            return self.load_from_program(name, selector as u16);
        }
        let width = match self.instruction.op_kind(0) {
            OpKind::Memory => memory_width(&self.instruction)?,
            _ => self.place(0)?.width(),
        };
        let value = self.pop(width)?;
        // The address is computed with the new RSP.
        let place = self.place(0)?;
        self.write(place, value)
    }

    pub(super) fn leave(&mut self) -> Outcome {
        let width = match self.instruction.code() {
            Code::Leavew => Width::Word,
            Code::Leaved => Width::Dword,
            _ => Width::Qword,
        };
        let stack = self.cpu.stack_width();
        self.set_gpr(Gpr::Rsp, stack, self.gpr(Gpr::Rbp, stack));
        let frame = self.pop(width)?;
        self.set_gpr(Gpr::Rbp, width, frame);
        Ok(())
    }

    /// `CBW`, `CWDE`, `CDQE`.
    pub(super) fn extend_accumulator(&mut self) -> Outcome {
        let (from, to) = match self.instruction.code() {
            Code::Cbw => (Width::Byte, Width::Word),
            Code::Cwde => (Width::Word, Width::Dword),
            _ => (Width::Dword, Width::Qword),
        };
        let value = from.sign_extend(self.gpr(Gpr::Rax, from));
        self.set_gpr(Gpr::Rax, to, value);
        Ok(())
    }

    /// `CWD`, `CDQ`, `CQO`.
    pub(super) fn sign_into_rdx(&mut self) -> Outcome {
        let width = match self.instruction.code() {
            Code::Cwd => Width::Word,
            Code::Cdq => Width::Dword,
            _ => Width::Qword,
        };
        let sign = if width.sign(self.gpr(Gpr::Rax, width)) { u64::MAX } else { 0 };
        self.set_gpr(Gpr::Rdx, width, sign);
        Ok(())
    }
}
