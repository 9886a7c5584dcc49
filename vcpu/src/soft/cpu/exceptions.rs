//! Exceptions and their delivery through the 64-bit IDT (SDM vol. 3A, chapter 6), and the way back.

use memory_model::Gva;

use super::descriptors::Descriptor;
use super::step::{Abort, Step};
use crate::rflags;
use crate::soft::Bus;
use crate::{Exit, Gpr};

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
    /// `INT n`, `INT3`: as a trap, but the gate's DPL counts, and the program is to blame for faults.
    Software,
}

impl Exception {
    pub const DIVIDE: Self = Self::plain(0);
    pub const SINGLE_STEP: Self = Self { class: Class::Trap, ..Self::plain(1) };
    pub const INVALID_OPCODE: Self = Self::plain(6);
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
            8 => None,
            14 if contributory || second.vector == 14 => Some(Self::DOUBLE_FAULT),
            first if CONTRIBUTORY.contains(&first) && contributory => Some(Self::DOUBLE_FAULT),
            _ => Some(second),
        }
    }
}

/// Bit 0 of an error code: the event was not the program's own doing.
const EXTERNAL: u32 = 1;
/// Bit 1 of an error code: the selector index is a vector.
const IN_IDT: u32 = 2;

/// A 64-bit interrupt or trap gate.
struct Gate {
    selector: u16,
    offset: u64,
    ist: u8,
    dpl: u8,
    present: bool,
    /// Interrupt gates clear IF, trap gates do not.
    interrupt: bool,
}

impl Gate {
    /// `None` unless the type is one of the two.
    fn parse(bytes: [u8; 16]) -> Option<Self> {
        let raw = u128::from_le_bytes(bytes);
        let field = |shift: u32, bits: u32| (raw >> shift) as u64 & ((1 << bits) - 1);
        let kind = field(40, 5);
        (kind == 0xe || kind == 0xf).then_some(Self {
            selector: field(16, 16) as u16,
            offset: field(0, 16) | field(48, 48) << 16,
            ist: field(32, 3) as u8,
            dpl: field(45, 2) as u8,
            present: field(47, 1) != 0,
            interrupt: kind == 0xe,
        })
    }
}

impl<B: Bus> Step<'_, B> {
    /// Delivers an exception, and those its delivery raises, until a handler is entered or the
    /// processor shuts down.
    pub(super) fn raise(&mut self, mut exception: Exception) -> Option<Exit> {
        self.set_cr2(&exception);
        loop {
            let second = match self.deliver(&exception) {
                Ok(()) => return None,
                Err(Abort::Exception(second)) => second,
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

    /// Enters the handler of one exception. Registers change only if all of it succeeds.
    pub(super) fn deliver(&mut self, event: &Exception) -> Result<(), Abort> {
        let external = if event.class == Class::Software { 0 } else { EXTERNAL };
        let cpl = self.cpu.system.cpl();
        let gate = self.gate(event, external)?;
        let cs = self.handler_segment(gate.selector, external)?;
        let new_cpl = if cs.conforming() { cpl } else { cs.dpl };
        let protection = Abort::Exception(Exception::protection(external));
        if !self.cpu.canonical(gate.offset) {
            return Err(protection);
        }
        let regs = self.cpu.regs;
        let stack = match (gate.ist, new_cpl < cpl) {
            (0, false) => regs[Gpr::Rsp],
            (0, true) => self.tss_stack(4 + 8 * u64::from(new_cpl), external)?,
            (ist, _) => self.tss_stack(36 + 8 * u64::from(ist - 1), external)?,
        };

        let resume = if event.class == Class::Fault { rflags::RF } else { 0 };
        let frame = [
            event.error_code.unwrap_or(0).into(),
            regs.rip,
            self.cpu.system.cs.selector.into(),
            regs.rflags | resume,
            regs[Gpr::Rsp],
            self.cpu.system.ss.selector.into(),
        ];
        let frame = if event.error_code.is_some() { &frame[..] } else { &frame[1..] };
        let mut bytes = [0; 48];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(frame) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        let bytes = &bytes[..8 * frame.len()];
        let rsp = (stack & !0xf).wrapping_sub(bytes.len() as u64);
        // With a change of ring the pushes are the new ring's, and implicit for SMAP.
        let mut paging = self.cpu.paging();
        paging.user = new_cpl == 3;
        paging.ac &= new_cpl == cpl;
        self.bus
            .write(&paging, Gva(rsp), bytes)
            .map_err(|fault| Abort::from_system(fault, Exception::stack(external)))?;

        let system = &mut self.cpu.system;
        system.cs = cs.segment(gate.selector & !3 | u16::from(new_cpl));
        if new_cpl < cpl {
            system.ss = Descriptor::null_stack(new_cpl);
        }
        let regs = &mut self.cpu.regs;
        regs[Gpr::Rsp] = rsp;
        regs.rip = gate.offset;
        regs.rflags &= !(rflags::TF | rflags::NT | rflags::RF);
        if gate.interrupt {
            regs.rflags &= !rflags::IF;
        }
        Ok(())
    }

    fn gate(&mut self, event: &Exception, external: u32) -> Result<Gate, Abort> {
        let code = u32::from(event.vector) << 3 | IN_IDT | external;
        let protection = Abort::Exception(Exception::protection(code));
        let idt = self.cpu.system.idt;
        let offset = u64::from(event.vector) * 16;
        if offset + 15 > u64::from(idt.limit) {
            return Err(protection);
        }
        let mut bytes = [0; 16];
        self.read_system(idt.base.wrapping_add(offset), &mut bytes, Exception::protection(external))?;
        let Some(gate) = Gate::parse(bytes) else { return Err(protection) };
        if event.class == Class::Software && gate.dpl < self.cpu.system.cpl() {
            return Err(protection);
        }
        if !gate.present {
            return Err(Exception::not_present(code).into());
        }
        Ok(gate)
    }

    /// The code segment of a handler: 64-bit, present, and no less privileged than the program.
    fn handler_segment(&mut self, selector: u16, external: u32) -> Result<Descriptor, Abort> {
        if selector & !3 == 0 {
            return Err(Exception::protection(external).into());
        }
        let code = u32::from(selector & !3) | external;
        let descriptor = self.descriptor(selector, Exception::protection(code))?;
        if !descriptor.is_code()
            || !descriptor.long()
            || descriptor.db()
            || descriptor.dpl > self.cpu.system.cpl()
        {
            return Err(Exception::protection(code).into());
        }
        if !descriptor.present {
            return Err(Exception::not_present(code).into());
        }
        self.mark_accessed(selector, &descriptor)?;
        Ok(descriptor)
    }

    /// A stack pointer from the TSS.
    fn tss_stack(&mut self, offset: u64, external: u32) -> Result<u64, Abort> {
        let tr = self.cpu.system.tr;
        let tss_fault = Exception::invalid_tss(u32::from(tr.selector & !3) | external);
        if !tr.present || offset + 7 > u64::from(tr.limit) {
            return Err(tss_fault.into());
        }
        let mut bytes = [0; 8];
        self.read_system(tr.base.wrapping_add(offset), &mut bytes, tss_fault)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a descriptor table or the TSS: an implicit supervisor access.
    pub(super) fn read_system(
        &mut self,
        address: u64,
        buf: &mut [u8],
        not_canonical: Exception,
    ) -> Result<(), Abort> {
        let paging = self.cpu.implicit_paging();
        self.bus
            .read(&paging, Gva(address), buf, crate::soft::AccessKind::Read)
            .map_err(|fault| Abort::from_system(fault, not_canonical))
    }

    /// `IRETQ` (SDM vol. 2A, "IRET", 64-bit mode).
    pub(super) fn iret(&mut self) -> Result<(), Abort> {
        if self.cpu.regs.rflags & rflags::NT != 0 {
            return Err(Exception::protection(0).into());
        }
        let mut frame = [0; 5];
        for word in &mut frame {
            *word = self.pop(super::alu::Width::Qword)?;
        }
        let [rip, cs, flags, rsp, ss] = frame;
        let old_cpl = self.cpu.system.cpl();
        let writable = flags_writable_by_iret(old_cpl, self.cpu.regs.rflags);
        self.return_to(cs as u16, rip, ss as u16, rsp)?;
        let regs = &mut self.cpu.regs;
        regs.rflags = regs.rflags & !writable | flags & writable;
        Ok(())
    }

    /// Loads CS:RIP and SS:RSP from a far return's frame, in the same or an outer ring.
    fn return_to(&mut self, cs: u16, rip: u64, ss: u16, rsp: u64) -> Result<(), Abort> {
        let cpl = self.cpu.system.cpl();
        let new_cpl = (cs & 3) as u8;
        if cs & !3 == 0 {
            return Err(Exception::protection(0).into());
        }
        let bad_cs = Exception::protection((cs & !3).into());
        let code = self.descriptor(cs, bad_cs)?;
        let ring_fits = if code.conforming() { code.dpl <= new_cpl } else { code.dpl == new_cpl };
        if !code.is_code() || new_cpl < cpl || !ring_fits || code.long() && code.db() {
            return Err(bad_cs.into());
        }
        if !code.present {
            return Err(Exception::not_present((cs & !3).into()).into());
        }
        if !code.long() {
            // A return to compatibility mode.
            return Err(Abort::Unimplemented);
        }
        let stack = self.return_stack(ss, new_cpl)?;
        if !self.cpu.canonical(rip) {
            return Err(Exception::protection(0).into());
        }
        self.mark_accessed(cs, &code)?;
        let system = &mut self.cpu.system;
        system.cs = code.segment(cs);
        system.ss = stack;
        if new_cpl > cpl {
            for segment in [&mut system.ds, &mut system.es, &mut system.fs, &mut system.gs] {
                let conforming_code = segment.kind & 0b1100 == 0b1100;
                if segment.dpl < new_cpl && !conforming_code {
                    segment.selector = 0;
                    segment.present = false;
                }
            }
        }
        self.cpu.regs.rip = rip;
        self.cpu.regs[Gpr::Rsp] = rsp;
        Ok(())
    }

    fn return_stack(&mut self, ss: u16, new_cpl: u8) -> Result<crate::Segment, Abort> {
        if ss & !3 == 0 {
            return if new_cpl < 3 && (ss & 3) as u8 == new_cpl {
                Ok(crate::Segment { selector: ss, ..Descriptor::null_stack(new_cpl) })
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
