//! Addition to division, and the compare-and-exchange family.

use super::Outcome;
use crate::soft::cpu::alu::{self, Binary, Divide, Multiply, STATUS, Width};
use crate::soft::cpu::cpuid::Feature;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::operands::Place;
use crate::soft::cpu::step::Step;
use crate::soft::{AccessKind, Bus};
use crate::{Gpr, rflags};

impl<B: Bus> Step<'_, B> {
    pub(super) fn binary(&mut self, operation: Binary) -> Outcome {
        let place = self.place(0)?;
        let width = place.width();
        let source = self.source(1, width)?;
        let old = self.read_to_modify(place)?;
        let (result, flags) = operation(width, old, source, self.has_flag(rflags::CF));
        self.write(place, result)?;
        self.change_flags(STATUS, flags)
    }

    /// `CMP`, `TEST`: the flags without the result.
    pub(super) fn compare(&mut self, operation: Binary) -> Outcome {
        let place = self.place(0)?;
        let width = place.width();
        let source = self.source(1, width)?;
        let value = self.read(place)?;
        let (_, flags) = operation(width, value, source, false);
        self.change_flags(STATUS, flags)
    }

    /// `INC`, `DEC`: CF stays.
    pub(super) fn step_by_one(&mut self, operation: Binary) -> Outcome {
        let place = self.place(0)?;
        let old = self.read_to_modify(place)?;
        let (result, flags) = operation(place.width(), old, 1, false);
        self.write(place, result)?;
        self.change_flags(STATUS & !rflags::CF, flags)
    }

    pub(super) fn neg(&mut self) -> Outcome {
        let place = self.place(0)?;
        let old = self.read_to_modify(place)?;
        let (result, flags) = alu::sub(place.width(), 0, old, false);
        self.write(place, result)?;
        self.change_flags(STATUS, flags)
    }

    pub(super) fn not(&mut self) -> Outcome {
        let place = self.place(0)?;
        let old = self.read_to_modify(place)?;
        self.write(place, !old & place.width().mask())
    }

    /// `MUL`, and `IMUL` with one operand.
    pub(super) fn multiply_accumulator(&mut self, operation: Multiply) -> Outcome {
        let place = self.place(0)?;
        let width = place.width();
        let factor = self.read(place)?;
        let (low, high, overflow) = operation(width, self.gpr(Gpr::Rax, width), factor);
        self.set_accumulator(width, low, high);
        self.multiply_flags(width, low, overflow)
    }

    pub(super) fn imul(&mut self) -> Outcome {
        let (first, second) = match self.instruction.op_count() {
            1 => return self.multiply_accumulator(alu::imul),
            2 => (0, 1),
            _ => (1, 2),
        };
        let place = self.place(0)?;
        let width = place.width();
        let (a, b) = (self.source(first, width)?, self.source(second, width)?);
        let (low, _, overflow) = alu::imul(width, a, b);
        self.write(place, low)?;
        self.multiply_flags(width, low, overflow)
    }

    /// The SDM defines CF and OF only; the others are as on Intel's processors.
    fn multiply_flags(&mut self, width: Width, low: u64, overflow: bool) -> Outcome {
        let carry = alu::flag(rflags::CF | rflags::OF, overflow);
        let others = alu::sign_zero_parity(width, low) & !rflags::ZF;
        self.change_flags(STATUS, carry | others)
    }

    pub(super) fn divide(&mut self, operation: Divide) -> Outcome {
        let place = self.place(0)?;
        let width = place.width();
        let divisor = self.read(place)?;
        let (low, high) = match width {
            Width::Byte => (self.gpr(Gpr::Rax, width), self.gpr(Gpr::Rax, Width::Word) >> 8),
            _ => (self.gpr(Gpr::Rax, width), self.gpr(Gpr::Rdx, width)),
        };
        let (quotient, remainder) = operation(width, high, low, divisor).ok_or(Exception::DIVIDE)?;
        self.set_accumulator(width, quotient, remainder);
        Ok(())
    }

    /// Sets the pair of registers that products and dividends live in: AH:AL, or xDX:xAX.
    fn set_accumulator(&mut self, width: Width, low: u64, high: u64) {
        if width == Width::Byte {
            self.set_gpr(Gpr::Rax, Width::Word, high << 8 | low);
        } else {
            self.set_gpr(Gpr::Rax, width, low);
            self.set_gpr(Gpr::Rdx, width, high);
        }
    }

    pub(super) fn xadd(&mut self) -> Outcome {
        let (destination, source) = (self.place(0)?, self.place(1)?);
        let old = self.read_to_modify(destination)?;
        let (sum, flags) = alu::add(destination.width(), old, self.read(source)?, false);
        if let Place::Memory(..) = destination {
            self.write(destination, sum)?;
            self.write(source, old)?;
        } else {
            // The sum wins where both are one register.
            self.write(source, old)?;
            self.write(destination, sum)?;
        }
        self.change_flags(STATUS, flags)
    }

    /// Memory is written in either case, a register only if they are equal: the upper half of a 32-bit
    /// one survives otherwise.
    pub(super) fn cmpxchg(&mut self) -> Outcome {
        let place = self.place(0)?;
        let width = place.width();
        let source = self.source(1, width)?;
        let old = self.read_to_modify(place)?;
        let (_, flags) = alu::sub(width, self.gpr(Gpr::Rax, width), old, false);
        if flags & rflags::ZF != 0 {
            self.write(place, source)?;
        } else {
            if let Place::Memory(..) = place {
                self.write(place, old)?;
            }
            self.set_gpr(Gpr::Rax, width, old);
        }
        self.change_flags(STATUS, flags)
    }

    pub(super) fn cmpxchg8b(&mut self) -> Outcome {
        let at = self.memory_operand();
        let pair = |low, high| high << 32 | low;
        let old = self.load(at, Width::Qword, AccessKind::Write)?;
        let expected = pair(self.gpr(Gpr::Rax, Width::Dword), self.gpr(Gpr::Rdx, Width::Dword));
        let new = pair(self.gpr(Gpr::Rbx, Width::Dword), self.gpr(Gpr::Rcx, Width::Dword));
        let equal = old == expected;
        self.store(at, Width::Qword, if equal { new } else { old })?;
        if !equal {
            self.set_gpr(Gpr::Rax, Width::Dword, old);
            self.set_gpr(Gpr::Rdx, Width::Dword, old >> 32);
        }
        self.change_flags(rflags::ZF, alu::flag(rflags::ZF, equal))
    }

    pub(super) fn cmpxchg16b(&mut self) -> Outcome {
        self.requires(Feature::CX16)?;
        let at = self.memory_operand();
        if self.linear(at, 16, AccessKind::Write)?.address & 15 != 0 {
            return Err(Exception::protection(0).into());
        }
        let regs = self.cpu.regs;
        let pair = |low, high| u128::from(regs[high]) << 64 | u128::from(regs[low]);
        let mut bytes = [0; 16];
        self.load_bytes(at, &mut bytes, AccessKind::Write)?;
        let old = u128::from_le_bytes(bytes);
        let equal = old == pair(Gpr::Rax, Gpr::Rdx);
        let new = if equal { pair(Gpr::Rbx, Gpr::Rcx) } else { old };
        self.store_bytes(at, &new.to_le_bytes())?;
        if !equal {
            self.cpu.regs[Gpr::Rax] = old as u64;
            self.cpu.regs[Gpr::Rdx] = (old >> 64) as u64;
        }
        self.change_flags(rflags::ZF, alu::flag(rflags::ZF, equal))
    }
}
