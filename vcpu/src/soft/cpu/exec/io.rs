//! Ports, and who may use them.

use iced_x86::OpKind;

use super::Outcome;
use crate::soft::Bus;
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::step::{Abort, Step};
use crate::{Exit, Gpr, rflags};

/// Where the TSS says how far into it the I/O permission bitmap starts.
const IO_MAP_BASE: u64 = 102;

impl<B: Bus> Step<'_, B> {
    pub(super) fn port_in(&mut self) -> Outcome {
        let (place, port) = (self.place(0)?, self.port(1));
        self.check_port(port, place.width())?;
        let value = self.read_port(port, place.width())?;
        self.write(place, value)
    }

    pub(super) fn port_out(&mut self) -> Outcome {
        let (place, port) = (self.place(1)?, self.port(0));
        self.check_port(port, place.width())?;
        self.write_port(port, place.width(), self.gpr(Gpr::Rax, place.width()));
        Ok(())
    }

    pub(super) fn write_port(&mut self, port: u16, width: Width, value: u64) {
        let data = &value.to_le_bytes()[..width.bytes()];
        if !self.with_interrupts(|interrupts| interrupts.write_ports(port, data)).unwrap_or(false) {
            self.exit = Some(Exit::IoOut { port, size: width.bytes() as u8, data: data.to_vec() });
        }
        self.watch_port(port, width.bytes());
    }

    fn port(&self, operand: u32) -> u16 {
        match self.instruction.op_kind(operand) {
            OpKind::Immediate8 => self.instruction.immediate8().into(),
            _ => self.port_in_dx(),
        }
    }

    /// CPL <= IOPL.
    pub(super) fn has_io_privilege(&self) -> bool {
        u64::from(self.cpu.system.cpl()) <= (self.cpu.regs.rflags & rflags::IOPL) >> 12
    }

    /// Without I/O privilege the TSS must allow each port of the access (SDM vol. 1, 19.5.2).
    pub(super) fn check_port(&mut self, port: u16, width: Width) -> Outcome {
        if self.has_io_privilege() {
            return Ok(());
        }
        let map = self.tss_word(IO_MAP_BASE)?;
        let denied = self.tss_word(u64::from(map) + u64::from(port / 8))?;
        let ports = ((1 << width.bytes()) - 1) << (port % 8);
        if denied & ports == 0 { Ok(()) } else { Err(Exception::protection(0).into()) }
    }

    /// Two bytes of the TSS; #GP(0) past its limit.
    fn tss_word(&mut self, offset: u64) -> Result<u16, Abort> {
        let mut bytes = [0; 2];
        self.read_tss(offset, &mut bytes, Exception::protection(0))?;
        Ok(u16::from_le_bytes(bytes))
    }
}
