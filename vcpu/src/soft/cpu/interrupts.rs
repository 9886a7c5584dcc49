//! Interrupts and exceptions on their way into a handler: the real-mode vector table, and gates of 16, 32 and
//! 64 bits (SDM vol. 3A, chapters 7 and 22; vol. 2A, "INT n").

use super::alu::Width;
use super::descriptors::Descriptor;
use super::exceptions::{Class, EXTERNAL, Exception, IN_IDT};
use super::frames::Stack;
use super::step::{Abort, Step};
use crate::soft::Bus;
use crate::{Gpr, Segment, rflags};

/// An interrupt or trap gate.
struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    dpl: u8,
    present: bool,
    /// Interrupt gates clear IF, trap gates do not.
    interrupt: bool,
    /// Of what it pushes.
    width: Width,
}

/// Type of a task gate.
const TASK_GATE: u64 = 5;

impl Gate {
    /// `None` unless the type is one of the two, of a size that the mode has.
    fn parse(bytes: [u8; 16], long_mode: bool) -> Option<Self> {
        let raw = u128::from_le_bytes(bytes);
        let field = |shift: u32, bits: u32| (raw >> shift) as u64 & ((1 << bits) - 1);
        let (interrupt, width) = match (field(40, 5), long_mode) {
            (0xe, true) => (true, Width::Qword),
            (0xf, true) => (false, Width::Qword),
            (0xe, false) => (true, Width::Dword),
            (0xf, false) => (false, Width::Dword),
            (0x6, false) => (true, Width::Word),
            (0x7, false) => (false, Width::Word),
            _ => return None,
        };
        let high = match width {
            Width::Qword => field(48, 48),
            Width::Dword => field(48, 16),
            _ => 0,
        };
        Some(Self {
            selector: field(16, 16) as u16,
            offset: field(0, 16) | high << 16,
            ist: if long_mode { field(32, 3) as u8 } else { 0 },
            dpl: field(45, 2) as u8,
            present: field(47, 1) != 0,
            interrupt,
            width,
        })
    }
}

impl<B: Bus> Step<'_, B> {
    /// Enters the handler of one exception. Registers change only if all of it succeeds.
    pub(super) fn deliver(&mut self, event: &Exception) -> Result<(), Abort> {
        if self.cpu.in_protected_mode() { self.deliver_by_gate(event) } else { self.deliver_by_vector(event) }
    }

    /// Real mode: the table has an offset and a segment for each vector, and there are no error codes.
    fn deliver_by_vector(&mut self, event: &Exception) -> Result<(), Abort> {
        let idt = self.cpu.system.idt;
        let offset = u64::from(event.vector) * 4;
        if offset + 3 > u64::from(idt.limit) {
            return Err(Exception::protection(0).into());
        }
        let mut bytes = [0; 4];
        self.read_system(idt.base.wrapping_add(offset), &mut bytes, Exception::protection(0))?;
        let [o0, o1, s0, s1] = bytes;
        let regs = &self.cpu.regs;
        let frame = [regs.rflags, self.cpu.system.cs.selector.into(), regs.rip];
        self.push_all(Width::Word, &frame)?;
        self.set_real_mode_cs(u16::from_le_bytes([s0, s1]));
        self.cpu.regs.rip = u16::from_le_bytes([o0, o1]).into();
        self.cpu.regs.rflags &= !(rflags::TF | rflags::IF | rflags::RF | rflags::AC);
        Ok(())
    }

    fn deliver_by_gate(&mut self, event: &Exception) -> Result<(), Abort> {
        let external = if event.class == Class::Software { 0 } else { EXTERNAL };
        let cpl = self.cpu.system.cpl();
        let gate = self.gate(event, external)?;
        let cs = self.handler_segment(gate.selector, external)?;
        let new_cpl = if cs.conforming() { cpl } else { cs.dpl };
        let code = cs.segment(gate.selector & !3 | u16::from(new_cpl));
        let reached = match gate.width {
            Width::Qword => self.cpu.canonical(gate.offset),
            _ => code.reaches(gate.offset, gate.offset),
        };
        if !reached {
            return Err(Exception::protection(external).into());
        }
        let stack = self.handler_stack(&gate, new_cpl, external)?;

        let regs = self.cpu.regs;
        let resume = if event.class == Class::Fault { rflags::RF } else { 0 };
        let frame = [
            self.cpu.system.ss.selector.into(),
            regs[Gpr::Rsp],
            regs.rflags | resume,
            self.cpu.system.cs.selector.into(),
            regs.rip,
            event.error_code.unwrap_or(0).into(),
        ];
        // The old stack is pushed where the stack changes, and always in long mode.
        let first = if new_cpl < cpl || gate.width == Width::Qword { 0 } else { 2 };
        let end = if event.error_code.is_some() { 6 } else { 5 };
        let pointer = self.push_frame(&stack, gate.width, &frame[first..end])?;

        let system = &mut self.cpu.system;
        system.cs = code;
        system.ss = stack.segment;
        self.set_gpr(Gpr::Rsp, stack.width, pointer);
        let regs = &mut self.cpu.regs;
        regs.rip = gate.offset;
        regs.rflags &= !(rflags::TF | rflags::NT | rflags::RF | rflags::VM);
        if gate.interrupt {
            regs.rflags &= !rflags::IF;
        }
        Ok(())
    }

    fn gate(&mut self, event: &Exception, external: u32) -> Result<Gate, Abort> {
        let code = u32::from(event.vector) << 3 | IN_IDT | external;
        let protection = Abort::Exception(Exception::protection(code));
        let idt = self.cpu.system.idt;
        let long_mode = self.cpu.in_long_mode();
        let size = if long_mode { 16 } else { 8 };
        let offset = u64::from(event.vector) * size as u64;
        if offset + size as u64 - 1 > u64::from(idt.limit) {
            return Err(protection);
        }
        let mut bytes = [0; 16];
        let address = idt.base.wrapping_add(offset);
        self.read_system(address, &mut bytes[..size], Exception::protection(external))?;
        let task_gate = u64::from(bytes[5]) & 0x1f == TASK_GATE;
        if task_gate && !long_mode {
            return Err(Abort::Unimplemented);
        }
        let Some(gate) = Gate::parse(bytes, long_mode) else { return Err(protection) };
        if event.class == Class::Software && gate.dpl < self.cpu.system.cpl() {
            return Err(protection);
        }
        if !gate.present {
            return Err(Exception::not_present(code).into());
        }
        Ok(gate)
    }

    /// The code segment of a handler: present, no less privileged than the program, and 64-bit in long mode.
    fn handler_segment(&mut self, selector: u16, external: u32) -> Result<Descriptor, Abort> {
        if selector & !3 == 0 {
            return Err(Exception::protection(external).into());
        }
        let code = u32::from(selector & !3) | external;
        let descriptor = self.descriptor(selector, Exception::protection(code))?;
        let sized = !self.cpu.in_long_mode() || descriptor.long() && !descriptor.db();
        if !descriptor.is_code() || !sized || descriptor.dpl > self.cpu.system.cpl() {
            return Err(Exception::protection(code).into());
        }
        if !descriptor.present {
            return Err(Exception::not_present(code).into());
        }
        self.mark_accessed(selector, &descriptor)?;
        Ok(descriptor)
    }

    /// The stack that a handler starts on.
    fn handler_stack(&mut self, gate: &Gate, new_cpl: u8, external: u32) -> Result<Stack, Abort> {
        let cpl = self.cpu.system.cpl();
        // With a change of ring the pushes are the new ring's, and implicit for SMAP.
        let mut paging = self.cpu.paging();
        paging.user = new_cpl == 3;
        paging.ac &= new_cpl == cpl;
        let fault = Exception::stack(external);
        let changes = new_cpl < cpl;
        if gate.width == Width::Qword {
            let segment = if changes { Descriptor::null_stack(new_cpl) } else { self.cpu.system.ss };
            let pointer = match gate.ist {
                0 if changes => self.tss_pointer(4 + 8 * u64::from(new_cpl), external)?,
                0 => self.gpr(Gpr::Rsp, self.cpu.stack_width()),
                ist => self.tss_pointer(36 + 8 * u64::from(ist - 1), external)?,
            };
            return Ok(Stack { segment, width: Width::Qword, pointer: pointer & !0xf, paging, fault });
        }
        if !changes {
            return Ok(Stack { paging, fault, ..self.own_stack() });
        }
        let (pointer, selector) = self.tss_stack(new_cpl, external)?;
        let segment = self.inner_stack(selector, new_cpl, external)?;
        let width = if segment.db { Width::Dword } else { Width::Word };
        let fault = Exception::stack(u32::from(selector & !3) | external);
        Ok(Stack { segment, width, pointer: pointer & width.mask(), paging, fault })
    }

    /// SS of an inner ring, as the TSS names it.
    fn inner_stack(&mut self, selector: u16, new_cpl: u8, external: u32) -> Result<Segment, Abort> {
        let code = u32::from(selector & !3) | external;
        let bad = Exception::invalid_tss(code);
        if selector & !3 == 0 {
            return Err(bad.into());
        }
        let data = self.descriptor(selector, bad)?;
        if (selector & 3) as u8 != new_cpl || data.dpl != new_cpl || !data.is_writable_data() {
            return Err(bad.into());
        }
        if !data.present {
            return Err(Exception::stack(code).into());
        }
        self.mark_accessed(selector, &data)?;
        Ok(data.segment(selector))
    }
}
