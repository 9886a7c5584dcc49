//! Far jumps and calls: a new CS with the new RIP (SDM vol. 2A, "JMP" and "CALL"; vol. 3A, 6.8).

use iced_x86::{Code, OpKind};

use super::alu::Width;
use super::descriptors::Descriptor;
use super::exceptions::Exception;
use super::step::{Abort, Step};
use crate::Segment;
use crate::soft::{AccessKind, Bus};

/// Types of call gates, task gates and task-state segments: what a far transfer may name beside code.
const LEGACY_GATES_AND_TASKS: [u8; 5] = [1, 4, 5, 9, 12];
/// Of those, what long mode has.
const LONG_MODE_GATES: [u8; 1] = [12];

impl<B: Bus> Step<'_, B> {
    pub(super) fn is_far(&self) -> bool {
        use Code::*;
        matches!(
            self.instruction.code(),
            Jmp_ptr1616
                | Jmp_ptr1632
                | Jmp_m1616
                | Jmp_m1632
                | Jmp_m1664
                | Call_ptr1616
                | Call_ptr1632
                | Call_m1616
                | Call_m1632
                | Call_m1664
        )
    }

    /// The operand of a far transfer: selector, offset, and the size of both on the stack.
    fn far_operand(&mut self) -> Result<(u16, u64, Width), Abort> {
        let instruction = &self.instruction;
        match instruction.op_kind(0) {
            OpKind::FarBranch16 => {
                Ok((instruction.far_branch_selector(), instruction.far_branch16().into(), Width::Word))
            }
            OpKind::FarBranch32 => {
                Ok((instruction.far_branch_selector(), instruction.far_branch32().into(), Width::Dword))
            }
            _ => {
                let width = match instruction.code() {
                    Code::Jmp_m1616 | Code::Call_m1616 => Width::Word,
                    Code::Jmp_m1632 | Code::Call_m1632 => Width::Dword,
                    _ => Width::Qword,
                };
                let (selector, offset) = self.far_pointer(width)?;
                Ok((selector, offset, width))
            }
        }
    }

    /// A far pointer in memory: an offset of `width`, and a selector behind it.
    pub(super) fn far_pointer(&mut self, width: Width) -> Result<(u16, u64), Abort> {
        let offset = self.load(self.memory_operand(), width, AccessKind::Read)?;
        let selector = self.memory_operand_at(width.bytes() as u64);
        Ok((self.load(selector, Width::Word, AccessKind::Read)? as u16, offset))
    }

    pub(super) fn jmp_far(&mut self) -> Result<(), Abort> {
        let (selector, offset, _) = self.far_operand()?;
        let code = self.far_code_segment(selector)?;
        self.check_target(&code, offset)?;
        self.cpu.system.cs = code;
        self.cpu.regs.rip = offset;
        Ok(())
    }

    pub(super) fn call_far(&mut self) -> Result<(), Abort> {
        let (selector, offset, width) = self.far_operand()?;
        let code = self.far_code_segment(selector)?;
        self.check_target(&code, offset)?;
        self.push_all(width, &[self.cpu.system.cs.selector.into(), self.cpu.regs.rip])?;
        self.cpu.system.cs = code;
        self.cpu.regs.rip = offset;
        Ok(())
    }

    /// CS after a far transfer within the ring.
    fn far_code_segment(&mut self, selector: u16) -> Result<Segment, Abort> {
        if !self.cpu.in_protected_mode() {
            let base = u64::from(selector) << 4;
            return Ok(Segment { selector, base, ..self.cpu.system.cs });
        }
        if selector & !3 == 0 {
            return Err(Exception::protection(0).into());
        }
        let cpl = self.cpu.system.cpl();
        let bad = Exception::protection((selector & !3).into());
        let descriptor = self.descriptor(selector, bad)?;
        if !descriptor.code_or_data() {
            let gates = if self.cpu.in_long_mode() { &LONG_MODE_GATES[..] } else { &LEGACY_GATES_AND_TASKS };
            return Err(if gates.contains(&descriptor.kind()) { Abort::Unimplemented } else { bad.into() });
        }
        let ring_fits = match descriptor.conforming() {
            true => descriptor.dpl <= cpl,
            false => descriptor.dpl == cpl && (selector & 3) as u8 <= cpl,
        };
        if !descriptor.is_code() || !ring_fits || self.has_two_sizes(&descriptor) {
            return Err(bad.into());
        }
        if !descriptor.present {
            return Err(Exception::not_present((selector & !3).into()).into());
        }
        self.mark_accessed(selector, &descriptor)?;
        Ok(descriptor.segment(selector & !3 | u16::from(cpl)))
    }

    /// L and D together mean nothing in long mode.
    pub(super) fn has_two_sizes(&self, code: &Descriptor) -> bool {
        self.cpu.in_long_mode() && code.long() && code.db()
    }

    /// #GP(0) unless code can start at `rip` in `code`.
    pub(super) fn check_target(&self, code: &Segment, rip: u64) -> Result<(), Abort> {
        let reached = match self.cpu.in_long_mode() && code.long {
            true => self.cpu.canonical(rip),
            false => rip <= u64::from(code.limit),
        };
        if reached { Ok(()) } else { Err(Exception::protection(0).into()) }
    }
}
