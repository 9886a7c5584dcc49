//! Exceptions, and what becomes of one that another follows (SDM vol. 3A, chapter 7).

use memory_model::Gva;

use super::debug::dr7;
use super::step::{Abort, Step};
use crate::Exit;
use crate::soft::Bus;

/// An exception or a software interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Exception {
    pub vector: u8,
    /// What is pushed last, for those that push one.
    pub error_code: Option<u32>,
    /// The address that goes to CR2, for #PF.
    pub address: Option<Gva>,
    pub class: Class,
}

/// What the saved state says of the instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// RIP is the instruction's own; RF is set in the saved flags.
    Fault,
    /// RIP is the next instruction's.
    Trap,
    /// `INT n`, `INT3`, `INTO`: as a trap, but the gate's DPL counts, and the program is to blame for faults.
    Software,
    /// An interrupt: RIP is the next instruction's, and no exception it meets makes it worse.
    External,
}

impl Exception {
    pub const DIVIDE: Self = Self::plain(0);
    /// A trap, or a fault before which RF is not set: then RIP is the instruction's own all the same.
    pub const DEBUG: Self = Self { class: Class::Trap, ..Self::plain(1) };
    pub const NMI: Self = Self::external(2);
    pub const BOUND: Self = Self::plain(5);
    pub const INVALID_OPCODE: Self = Self::plain(6);
    pub const DEVICE_NOT_AVAILABLE: Self = Self::plain(7);
    pub const DOUBLE_FAULT: Self = Self::with_code(8, 0);
    pub const ALIGNMENT: Self = Self::with_code(17, 0);

    const fn plain(vector: u8) -> Self {
        Self { vector, error_code: None, address: None, class: Class::Fault }
    }

    const fn with_code(vector: u8, code: u32) -> Self {
        Self { error_code: Some(code), ..Self::plain(vector) }
    }

    pub const fn software(vector: u8) -> Self {
        Self { class: Class::Software, ..Self::plain(vector) }
    }

    pub const fn external(vector: u8) -> Self {
        Self { class: Class::External, ..Self::plain(vector) }
    }

    /// #TS.
    pub const fn invalid_tss(code: u32) -> Self {
        Self::with_code(10, code)
    }

    /// #NP.
    pub const fn not_present(code: u32) -> Self {
        Self::with_code(11, code)
    }

    /// #SS.
    pub const fn stack(code: u32) -> Self {
        Self::with_code(12, code)
    }

    /// #GP.
    pub const fn protection(code: u32) -> Self {
        Self::with_code(13, code)
    }

    pub const fn page_fault(code: u32, address: Gva) -> Self {
        Self { address: Some(address), ..Self::with_code(14, code) }
    }

    /// What becomes of `second`, raised while `self` was being delivered (SDM vol. 3A, table 6-5);
    /// `None` is shutdown.
    pub fn followed_by(&self, second: Self) -> Option<Self> {
        const CONTRIBUTORY: [u8; 5] = [0, 10, 11, 12, 13];
        let contributory = CONTRIBUTORY.contains(&second.vector);
        match self.vector {
            _ if self.class == Class::External => Some(second),
            8 => None,
            14 if contributory || second.vector == 14 => Some(Self::DOUBLE_FAULT),
            first if CONTRIBUTORY.contains(&first) && contributory => Some(Self::DOUBLE_FAULT),
            _ => Some(second),
        }
    }
}

/// Bit 0 of an error code: the event was not the program's own doing.
pub(super) const EXTERNAL: u32 = 1;
/// Bit 1 of an error code: the selector index is a vector.
pub(super) const IN_IDT: u32 = 2;

impl<B: Bus> Step<'_, B> {
    /// Delivers an exception, and those its delivery raises, until a handler is entered or the
    /// processor shuts down.
    pub(super) fn raise(&mut self, mut exception: Exception) -> Option<Exit> {
        self.set_cr2(&exception);
        loop {
            let second = match self.deliver(&exception) {
                Ok(()) => {
                    if exception == Exception::DEBUG {
                        self.cpu.debug.dr7 &= !dr7::GD;
                    }
                    return None;
                }
                Err(Abort::Exception(second)) => second,
                // An exception is not started again, as an instruction is: its frame can't wait for a device.
                Err(Abort::Device(_)) => {
                    self.cpu.transactions.clear();
                    return Some(self.exit_for(Abort::Emulation));
                }
                Err(abort) => return Some(self.exit_for(abort)),
            };
            self.set_cr2(&second);
            match exception.followed_by(second) {
                Some(next) => exception = next,
                None => return Some(Exit::Shutdown),
            }
        }
    }

    fn set_cr2(&mut self, exception: &Exception) {
        if let Some(address) = exception.address {
            self.cpu.system.cr2 = address.raw();
        }
    }
}
