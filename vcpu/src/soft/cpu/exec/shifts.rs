//! Shifts and rotations.

use super::Outcome;
use crate::soft::Bus;
use crate::soft::cpu::alu::{DoubleShift, STATUS, Shift, Width};
use crate::soft::cpu::step::Step;

/// The count as the processor masks it: five bits, six for 64-bit operands.
fn masked(width: Width, count: u64) -> u32 {
    count as u32 & if width == Width::Qword { 63 } else { 31 }
}

impl<B: Bus> Step<'_, B> {
    pub(super) fn shift(&mut self, operation: Shift) -> Outcome {
        let place = self.place(0)?;
        let width = place.width();
        let count = masked(width, self.source(1, Width::Byte)?);
        let old = self.read_to_modify(place)?;
        let (result, flags) = operation(width, old, count, self.cpu.regs.rflags);
        self.write(place, result)?;
        self.change_flags(STATUS, flags)
    }

    pub(super) fn double_shift(&mut self, operation: DoubleShift) -> Outcome {
        let place = self.place(0)?;
        let width = place.width();
        let fill = self.source(1, width)?;
        let count = masked(width, self.source(2, Width::Byte)?);
        let old = self.read_to_modify(place)?;
        let (result, flags) = operation(width, old, fill, count, self.cpu.regs.rflags);
        self.write(place, result)?;
        self.change_flags(STATUS, flags)
    }
}
