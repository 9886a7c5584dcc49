//! Ways back: `IRET` and far `RET`, in the same ring or to an outer one (SDM vol. 2A, "IRET"; vol. 2B, "RET").

use iced_x86::Code;

use super::alu::Width;
use super::descriptors::Descriptor;
use super::exceptions::Exception;
use super::segments::{CODE, CONFORMING};
use super::step::{Abort, Step};
use crate::soft::Bus;
use crate::{Gpr, Segment, rflags};

impl<B: Bus> Step<'_, B> {
    pub(super) fn iret(&mut self) -> Result<(), Abort> {
        // Even one that faults.
        self.with_interrupts(|interrupts| interrupts.unblock_nmi());
        let width = match self.instruction.code() {
            Code::Iretw => Width::Word,
            Code::Iretd => Width::Dword,
            _ => Width::Qword,
        };
        let protected = self.cpu.in_protected_mode();
        if protected && self.cpu.regs.rflags & rflags::NT != 0 {
            // A return to the task before. Long mode has none.
            return Err(if self.cpu.in_long_mode() {
                Exception::protection(0).into()
            } else {
                Abort::Unimplemented
            });
        }
        let [rip, cs, flags] = [self.pop(width)?, self.pop(width)?, self.pop(width)?];
        let cpl = self.cpu.system.cpl();
        let writable = flags_writable_by_iret(cpl, self.cpu.regs.rflags) & width.mask();
        if !protected {
            self.return_in_real_mode(cs as u16, rip)?;
        } else {
            let virtual_8086 = flags & rflags::VM != 0 && width == Width::Dword;
            if virtual_8086 && cpl == 0 && !self.cpu.in_long_mode() {
                return Err(Abort::Unimplemented);
            }
            // 64-bit mode always has a stack in the frame.
            let outer = (cs & 3) as u8 > cpl || self.cpu.in_64_bit_mode();
            let stack = if outer { Some((self.pop(width)?, self.pop(width)? as u16)) } else { None };
            self.return_to(cs as u16, rip, stack)?;
        }
        let regs = &mut self.cpu.regs;
        regs.rflags = regs.rflags & !writable | flags & writable;
        Ok(())
    }

    /// Far `RET`, which may release bytes of both stacks.
    pub(super) fn ret_far(&mut self) -> Result<(), Abort> {
        let (width, released) = match self.instruction.code() {
            Code::Retfw => (Width::Word, 0),
            Code::Retfd => (Width::Dword, 0),
            Code::Retfq => (Width::Qword, 0),
            Code::Retfw_imm16 => (Width::Word, self.instruction.immediate16()),
            Code::Retfd_imm16 => (Width::Dword, self.instruction.immediate16()),
            _ => (Width::Qword, self.instruction.immediate16()),
        };
        let [rip, cs] = [self.pop(width)?, self.pop(width)?];
        self.release(released.into());
        if !self.cpu.in_protected_mode() {
            return self.return_in_real_mode(cs as u16, rip);
        }
        if (cs & 3) as u8 <= self.cpu.system.cpl() {
            return self.return_to(cs as u16, rip, None);
        }
        let stack = (self.pop(width)?, self.pop(width)? as u16);
        self.return_to(cs as u16, rip, Some(stack))?;
        self.release(released.into());
        Ok(())
    }

    fn return_in_real_mode(&mut self, cs: u16, rip: u64) -> Result<(), Abort> {
        self.check_target(&self.cpu.system.cs, rip)?;
        self.set_real_mode_cs(cs);
        self.cpu.regs.rip = rip;
        Ok(())
    }

    /// Loads CS:RIP, and RSP and SS if the frame has them, in the same or an outer ring.
    fn return_to(&mut self, cs: u16, rip: u64, stack: Option<(u64, u16)>) -> Result<(), Abort> {
        let cpl = self.cpu.system.cpl();
        let new_cpl = (cs & 3) as u8;
        if cs & !3 == 0 {
            return Err(Exception::protection(0).into());
        }
        let bad_cs = Exception::protection((cs & !3).into());
        let code = self.descriptor(cs, bad_cs)?;
        let ring_fits = if code.conforming() { code.dpl <= new_cpl } else { code.dpl == new_cpl };
        if !code.is_code() || new_cpl < cpl || !ring_fits || self.has_two_sizes(&code) {
            return Err(bad_cs.into());
        }
        if !code.present {
            return Err(Exception::not_present((cs & !3).into()).into());
        }
        let long = self.cpu.in_long_mode() && code.long();
        let ss = match stack {
            Some((_, ss)) => Some(self.return_stack(ss, new_cpl, long)?),
            None => None,
        };
        let segment = code.segment(cs);
        self.check_target(&segment, rip)?;
        self.mark_accessed(cs, &code)?;
        let system = &mut self.cpu.system;
        system.cs = segment;
        self.cpu.regs.rip = rip;
        if let Some((ss, (rsp, _))) = ss.zip(stack) {
            self.cpu.system.ss = ss;
            self.set_gpr(Gpr::Rsp, self.cpu.stack_width(), rsp);
        }
        if new_cpl > cpl {
            self.drop_inner_segments(new_cpl);
        }
        Ok(())
    }

    /// What an outer ring may not hold.
    pub(super) fn drop_inner_segments(&mut self, cpl: u8) {
        let system = &mut self.cpu.system;
        for segment in [&mut system.ds, &mut system.es, &mut system.fs, &mut system.gs] {
            let conforming_code = segment.kind & (CODE | CONFORMING) == CODE | CONFORMING;
            if segment.dpl < cpl && !conforming_code {
                segment.selector = 0;
                segment.present = false;
            }
        }
    }

    fn return_stack(&mut self, ss: u16, new_cpl: u8, long: bool) -> Result<Segment, Abort> {
        if ss & !3 == 0 {
            return if long && new_cpl < 3 && (ss & 3) as u8 == new_cpl {
                Ok(Segment { selector: ss, ..Descriptor::null_stack(new_cpl) })
            } else {
                Err(Exception::protection(0).into())
            };
        }
        let bad_ss = Exception::protection((ss & !3).into());
        let data = self.descriptor(ss, bad_ss)?;
        if (ss & 3) as u8 != new_cpl || !data.is_writable_data() || data.dpl != new_cpl {
            return Err(bad_ss.into());
        }
        if !data.present {
            return Err(Exception::stack((ss & !3).into()).into());
        }
        self.mark_accessed(ss, &data)?;
        Ok(data.segment(ss))
    }
}

fn flags_writable_by_iret(cpl: u8, old: u64) -> u64 {
    use rflags::{AC, AF, CF, DF, ID, IF, IOPL, NT, OF, PF, RF, SF, TF, ZF};
    let mut writable = CF | PF | AF | ZF | SF | TF | DF | OF | NT | RF | AC | ID;
    if u64::from(cpl) <= (old & IOPL) >> 12 {
        writable |= IF;
    }
    if cpl == 0 {
        writable |= IOPL;
    }
    writable
}
