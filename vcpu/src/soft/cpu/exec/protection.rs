//! Questions about descriptors: `LAR`, `LSL`, `VERR`, `VERW` and `ARPL`.

use super::Outcome;
use crate::rflags::ZF;
use crate::soft::Bus;
use crate::soft::cpu::alu::{Width, flag};
use crate::soft::cpu::descriptors::Descriptor;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::step::{Abort, Step};

/// The system descriptors that `LAR` knows (SDM vol. 2A, table 3-53): in long mode some do not exist.
const WITH_RIGHTS: [u8; 8] = [1, 2, 3, 4, 5, 9, 11, 12];
const WITH_RIGHTS_IN_LONG_MODE: [u8; 4] = [2, 9, 11, 12];
/// Those that `LSL` knows (table 3-55): tables and tasks.
const WITH_LIMIT: [u8; 5] = [1, 2, 3, 9, 11];
const WITH_LIMIT_IN_LONG_MODE: [u8; 3] = [2, 9, 11];

impl<B: Bus> Step<'_, B> {
    /// The descriptor of operand `operand`, if there is one and the program may know of it.
    fn visible_descriptor(&mut self, operand: u32, system: &[u8]) -> Result<Option<Descriptor>, Abort> {
        if !self.cpu.in_protected_mode() {
            return Err(Exception::INVALID_OPCODE.into());
        }
        let selector = self.source(operand, Width::Word)? as u16;
        if selector & !3 == 0 {
            return Ok(None);
        }
        let Some(descriptor) = self.find_descriptor(selector)? else { return Ok(None) };
        let known = descriptor.code_or_data() || system.contains(&descriptor.kind());
        let ring = self.cpu.system.cpl().max((selector & 3) as u8);
        Ok((known && (descriptor.conforming() || descriptor.dpl >= ring)).then_some(descriptor))
    }

    /// Writes what was found, and says in ZF whether there was anything.
    fn answer(&mut self, found: Option<u64>) -> Outcome {
        if let Some(value) = found {
            let place = self.place(0)?;
            self.write(place, value & place.width().mask())?;
        }
        self.change_flags(ZF, flag(ZF, found.is_some()))
    }

    pub(super) fn lar(&mut self) -> Outcome {
        let system = if self.cpu.in_long_mode() { &WITH_RIGHTS_IN_LONG_MODE[..] } else { &WITH_RIGHTS };
        let descriptor = self.visible_descriptor(1, system)?;
        self.answer(descriptor.map(|descriptor| descriptor.access_rights()))
    }

    pub(super) fn lsl(&mut self) -> Outcome {
        let system = if self.cpu.in_long_mode() { &WITH_LIMIT_IN_LONG_MODE[..] } else { &WITH_LIMIT };
        let descriptor = self.visible_descriptor(1, system)?;
        self.answer(descriptor.map(|descriptor| descriptor.limit().into()))
    }

    /// `VERR`, `VERW`.
    pub(super) fn verify(&mut self, allowed: fn(&Descriptor) -> bool) -> Outcome {
        let descriptor = self.visible_descriptor(0, &[])?;
        self.change_flags(ZF, flag(ZF, descriptor.is_some_and(|descriptor| allowed(&descriptor))))
    }

    /// `ARPL`: lifts the RPL of the first selector to that of the second.
    pub(super) fn arpl(&mut self) -> Outcome {
        if !self.cpu.in_protected_mode() {
            return Err(Exception::INVALID_OPCODE.into());
        }
        let place = self.place(0)?;
        let rpl = self.source(1, Width::Word)? & 3;
        let old = self.read_to_modify(place)?;
        let lifts = old & 3 < rpl;
        if lifts {
            self.write(place, old & !3 | rpl)?;
        }
        self.change_flags(ZF, flag(ZF, lifts))
    }
}
