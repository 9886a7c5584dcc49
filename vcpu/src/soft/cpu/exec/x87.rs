//! What programs ask to learn whether there is an x87: `FNINIT`, and its control and status words.

use super::Outcome;
use crate::cr0;
use crate::soft::Bus;
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::operands::Place;
use crate::soft::cpu::step::Step;

/// The control word after `FNINIT`: all exceptions masked, 64 bits of precision.
pub(in crate::soft::cpu) const CONTROL_WORD: u16 = 0x37f;

impl<B: Bus> Step<'_, B> {
    fn requires_x87(&self) -> Outcome {
        let waits = cr0::TS | cr0::EM;
        if self.cpu.system.cr0 & waits != 0 { Err(Exception::DEVICE_NOT_AVAILABLE.into()) } else { Ok(()) }
    }

    pub(super) fn fninit(&mut self) -> Outcome {
        self.requires_x87()?;
        self.cpu.x87_control = CONTROL_WORD;
        Ok(())
    }

    pub(super) fn fldcw(&mut self) -> Outcome {
        self.requires_x87()?;
        self.cpu.x87_control = self.source(0, Width::Word)? as u16;
        Ok(())
    }

    pub(super) fn fnstcw(&mut self) -> Outcome {
        self.requires_x87()?;
        self.store(self.memory_operand(), Width::Word, self.cpu.x87_control.into())
    }

    /// Nothing ever sets a bit in it.
    pub(super) fn fnstsw(&mut self) -> Outcome {
        self.requires_x87()?;
        let place = match self.place(0) {
            Ok(place @ Place::Gpr(_)) => place,
            _ => Place::Memory(self.memory_operand(), Width::Word),
        };
        self.write(place, 0)
    }
}
