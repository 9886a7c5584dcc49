//! `SYSCALL`, `SYSENTER` and the ways back: flat segments that no descriptor is read for (SDM vol. 2B).

use iced_x86::Code;

use super::cpuid::Feature;
use super::exceptions::Exception;
use super::step::{Abort, Step};
use crate::soft::Bus;
use crate::{Gpr, Segment, efer, rflags};

/// What the new code is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Long,
    Legacy,
}

impl<B: Bus> Step<'_, B> {
    /// Sets CS and SS, the stack selector eight behind the code selector unless it is told.
    fn set_flat_segments(&mut self, cs: u16, ss: u16, dpl: u8, size: Size) {
        let rpl = u16::from(dpl);
        let long = size == Size::Long;
        let flat = Segment { limit: u32::MAX, dpl, code_or_data: true, present: true, ..Segment::default() };
        self.cpu.system.cs = Segment { selector: cs & !3 | rpl, kind: 0xb, long, db: !long, ..flat };
        self.cpu.system.ss = Segment { selector: ss & !3 | rpl, kind: 0x3, db: true, ..flat };
    }

    /// Outside long mode it saves no flags, and the target is in STAR too.
    pub(super) fn syscall(&mut self) -> Result<(), Abort> {
        self.check_syscall()?;
        let msrs = &self.cpu.msrs;
        let cs = (msrs.star >> 32) as u16;
        let (target, mask, size) = match (self.cpu.in_long_mode(), self.cpu.in_64_bit_mode()) {
            (true, true) => (msrs.lstar, msrs.fmask, Size::Long),
            (true, false) => (msrs.cstar, msrs.fmask, Size::Long),
            (false, _) => (msrs.star & 0xffff_ffff, rflags::IF | rflags::VM, Size::Legacy),
        };
        let regs = &mut self.cpu.regs;
        let flags = regs.rflags;
        regs[Gpr::Rcx] = regs.rip;
        if size == Size::Long {
            regs[Gpr::R11] = flags;
        }
        regs.rip = target;
        regs.rflags = flags & !(mask | rflags::RF) | rflags::FIXED;
        self.set_flat_segments(cs, cs.wrapping_add(8), 0, size);
        Ok(())
    }

    /// Intel's processors have it in 64-bit mode alone, all others in protected mode.
    fn check_syscall(&self) -> Result<(), Abort> {
        let enabled = self.cpu.system.efer & efer::SCE != 0;
        let in_mode = match self.cpu.cpuid.is_intel() {
            true => self.cpu.in_64_bit_mode(),
            false => self.cpu.in_protected_mode(),
        };
        if enabled && in_mode { Ok(()) } else { Err(Exception::INVALID_OPCODE.into()) }
    }

    pub(super) fn sysret(&mut self) -> Result<(), Abort> {
        self.check_syscall()?;
        self.privileged()?;
        let star = (self.cpu.msrs.star >> 48) as u16;
        let regs = &self.cpu.regs;
        let (rcx, flags) = (regs[Gpr::Rcx], regs[Gpr::R11]);
        let (rip, cs, size) = match self.instruction.code() {
            Code::Sysretq if !self.cpu.canonical(rcx) => return Err(Exception::protection(0).into()),
            Code::Sysretq => (rcx, star.wrapping_add(16), Size::Long),
            _ => (rcx & 0xffff_ffff, star, Size::Legacy),
        };
        let regs = &mut self.cpu.regs;
        regs.rip = rip;
        regs.rflags = match self.cpu.system.efer & efer::LMA {
            0 => regs.rflags | rflags::IF,
            _ => flags & FLAGS_OF_SYSRET | rflags::FIXED,
        };
        self.set_flat_segments(cs, star.wrapping_add(8), 3, size);
        Ok(())
    }

    pub(super) fn sysenter(&mut self) -> Result<(), Abort> {
        self.requires(Feature::SEP)?;
        let cs = self.sysenter_cs()?;
        let msrs = &self.cpu.msrs;
        let (rip, rsp) = (msrs.sysenter_eip, msrs.sysenter_esp);
        let long = self.cpu.in_long_mode();
        let mask = if long { u64::MAX } else { u32::MAX.into() };
        let regs = &mut self.cpu.regs;
        (regs.rip, regs[Gpr::Rsp]) = (rip & mask, rsp & mask);
        regs.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
        self.set_flat_segments(cs, cs.wrapping_add(8), 0, if long { Size::Long } else { Size::Legacy });
        Ok(())
    }

    pub(super) fn sysexit(&mut self) -> Result<(), Abort> {
        self.requires(Feature::SEP)?;
        let cs = self.sysenter_cs()?;
        self.privileged()?;
        let regs = &self.cpu.regs;
        let (rip, rsp) = (regs[Gpr::Rdx], regs[Gpr::Rcx]);
        let (offset, mask, size) = match self.instruction.code() {
            Code::Sysexitq if !(self.cpu.canonical(rip) && self.cpu.canonical(rsp)) => {
                return Err(Exception::protection(0).into());
            }
            Code::Sysexitq => (32, u64::MAX, Size::Long),
            _ => (16, u32::MAX.into(), Size::Legacy),
        };
        let cs = cs.wrapping_add(offset);
        let regs = &mut self.cpu.regs;
        (regs.rip, regs[Gpr::Rsp]) = (rip & mask, rsp & mask);
        self.set_flat_segments(cs, cs.wrapping_add(8), 3, size);
        Ok(())
    }

    /// #GP(0) in real mode, or if the selector is null.
    fn sysenter_cs(&self) -> Result<u16, Abort> {
        let cs = self.cpu.msrs.sysenter_cs as u16;
        if !self.cpu.in_protected_mode() || cs & !3 == 0 {
            return Err(Exception::protection(0).into());
        }
        Ok(cs)
    }
}

/// All flags but RF and VM.
const FLAGS_OF_SYSRET: u64 = 0x003c_7fd7;
