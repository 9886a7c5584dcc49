//! Debug registers and breakpoints (SDM vol. 3B, 19.2 and 19.3).

use super::events::Shadow;
use super::exceptions::Exception;
use super::memory::Linear;
use super::step::{Abort, Step};
use crate::soft::{AccessKind, Bus};
use crate::{cr4, rflags};

/// Bits of DR6.
pub(super) mod dr6 {
    /// B0 to B3: which breakpoint.
    pub const BREAKPOINTS: u64 = 0xf;
    /// A debug register was touched while DR7.GD was set.
    pub const BD: u64 = 1 << 13;
    /// Single step.
    pub const BS: u64 = 1 << 14;
    /// Always one.
    pub const FIXED: u64 = 0xffff_0ff0;
    /// All that a program can change.
    pub const WRITABLE: u64 = BREAKPOINTS | BD | BS | 1 << 15;
}

/// Bits of DR7.
pub(super) mod dr7 {
    /// L0, G0 to L3, G3.
    pub const ENABLES: u64 = 0xff;
    /// General detect: any `MOV` of a debug register is a #DB.
    pub const GD: u64 = 1 << 13;
    /// Always one.
    pub const FIXED: u64 = 1 << 10;
    /// All that a program can change: enables, LE, GE, GD, conditions and lengths.
    pub const WRITABLE: u64 = 0xffff_23ff;
}

/// What R/W of a breakpoint says.
const ON_EXECUTION: u64 = 0;
const ON_WRITE: u64 = 1;
const ON_PORT: u64 = 2;
const ON_ACCESS: u64 = 3;

/// DR0 to DR3, DR6 and DR7.
#[derive(Clone, Debug)]
pub(super) struct DebugRegs {
    pub address: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

impl Default for DebugRegs {
    fn default() -> Self {
        Self { address: [0; 4], dr6: dr6::FIXED, dr7: dr7::FIXED }
    }
}

impl DebugRegs {
    /// What a #DB finds in DR6.
    pub fn report(&mut self, causes: u64) {
        self.dr6 = self.dr6 & !dr6::BREAKPOINTS | causes;
    }

    pub fn enabled(&self) -> bool {
        self.dr7 & dr7::ENABLES != 0
    }

    /// The enabled breakpoints on one of `conditions` that the bytes `first..first + len` touch.
    fn hit(&self, first: u64, len: u64, conditions: &[u64]) -> u64 {
        let hit = |&index: &usize| {
            let enabled = self.dr7 >> (2 * index) & 3 != 0;
            let condition = self.dr7 >> (16 + 4 * index) & 3;
            // LEN: 1, 2, 8 or 4 bytes.
            let bytes = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * index) & 3) as usize];
            let start = self.address[index] & !(bytes - 1);
            let touched = first.wrapping_sub(start) < bytes || start.wrapping_sub(first) < len;
            enabled && conditions.contains(&condition) && touched
        };
        (0..4).filter(hit).map(|index| 1 << index).sum()
    }
}

impl<B: Bus> Step<'_, B> {
    /// #DB before an instruction that a breakpoint is on; RF holds it back once, and so does a load of SS before
    /// (SDM vol. 3A, 7.8.3).
    pub(super) fn code_breakpoint(&mut self) -> Result<(), Abort> {
        let resumed = self.cpu.unfinished.is_some_and(|unfinished| unfinished.ip() == self.cpu.regs.rip);
        let held = self.cpu.regs.rflags & rflags::RF != 0 || self.shadowed == Shadow::MovSs;
        if !self.cpu.debug.enabled() || held || resumed {
            return Ok(());
        }
        match self.cpu.debug.hit(self.linear_rip(), 1, &[ON_EXECUTION]) {
            0 => Ok(()),
            hit => Err(self.debug_fault(hit)),
        }
    }

    /// Remembers the breakpoints that a data access meets: their trap comes behind the instruction.
    pub(super) fn watch_data(&mut self, at: Linear, len: usize, kind: AccessKind) {
        if self.cpu.debug.enabled() {
            let conditions =
                if kind == AccessKind::Write { &[ON_WRITE, ON_ACCESS][..] } else { &[ON_ACCESS] };
            self.breakpoints |= self.cpu.debug.hit(at.address, len as u64, conditions);
        }
    }

    /// The same for ports, with CR4.DE.
    pub(super) fn watch_port(&mut self, port: u16, len: usize) {
        if self.cpu.debug.enabled() && self.cpu.system.cr4 & cr4::DE != 0 {
            self.breakpoints |= self.cpu.debug.hit(port.into(), len as u64, &[ON_PORT]);
        }
    }

    /// A #DB that comes instead of the instruction.
    fn debug_fault(&mut self, causes: u64) -> Abort {
        self.cpu.debug.report(causes);
        Exception::DEBUG.into()
    }

    /// What keeps a program from a debug register: its ring, or DR7.GD. Gives the register's number, 6 and 7
    /// for their older names 4 and 5 too.
    fn debug_register(&mut self, operand: u32) -> Result<usize, Abort> {
        use iced_x86::Register::{DR0, DR7};
        let register = self.instruction.op_register(operand);
        if !(DR0 as usize..=DR7 as usize).contains(&(register as usize)) {
            return Err(Exception::INVALID_OPCODE.into());
        }
        let number = match register as usize - DR0 as usize {
            4 | 5 if self.cpu.system.cr4 & cr4::DE != 0 => return Err(Exception::INVALID_OPCODE.into()),
            number @ (4 | 5) => number + 2,
            number => number,
        };
        self.privileged()?;
        if self.cpu.debug.dr7 & dr7::GD != 0 {
            return Err(self.debug_fault(dr6::BD));
        }
        Ok(number)
    }

    pub(super) fn mov_from_dr(&mut self) -> Result<(), Abort> {
        let debug = &self.cpu.debug;
        let values = [
            debug.address[0],
            debug.address[1],
            debug.address[2],
            debug.address[3],
            0,
            0,
            debug.dr6,
            debug.dr7,
        ];
        let value = values[self.debug_register(1)?];
        let place = self.place(0)?;
        self.write(place, value)
    }

    pub(super) fn mov_to_dr(&mut self) -> Result<(), Abort> {
        let number = self.debug_register(0)?;
        let value = self.source(1, self.place(1)?.width())?;
        if number > 3 && value >> 32 != 0 {
            return Err(Exception::protection(0).into());
        }
        let debug = &mut self.cpu.debug;
        match number {
            6 => debug.dr6 = value & dr6::WRITABLE | dr6::FIXED,
            7 => debug.dr7 = value & dr7::WRITABLE | dr7::FIXED,
            number => debug.address[number] = value,
        }
        Ok(())
    }
}
