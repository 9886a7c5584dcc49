//! Segment descriptors: reading the GDT, loading segment registers and TR (SDM vol. 3A, chapter 3.4.5).

use memory_model::Gva;

use super::exceptions::Exception;
use super::step::{Abort, Step};
use crate::Segment;
use crate::soft::Bus;

/// A code, data or system descriptor. Of a 64-bit system descriptor this is the lower half.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    raw: u64,
    pub dpl: u8,
    pub present: bool,
}

/// Accessed, in the type of a code or data descriptor.
const ACCESSED: u8 = 1;
/// Type of a 64-bit TSS nobody uses; busy is one more bit.
const TSS_AVAILABLE: u8 = 9;
const TSS_BUSY: u8 = 11;

impl Descriptor {
    fn new(raw: u64) -> Self {
        Self { raw, dpl: (raw >> 45) as u8 & 3, present: raw >> 47 & 1 != 0 }
    }

    /// SS after a change to a ring of more privilege: null, usable in 64-bit mode only.
    pub fn null_stack(cpl: u8) -> Segment {
        Segment { selector: cpl.into(), dpl: cpl, ..Segment::default() }
    }

    fn bit(&self, bit: u32) -> bool {
        self.raw >> bit & 1 != 0
    }

    fn kind(&self) -> u8 {
        (self.raw >> 40) as u8 & 0xf
    }

    fn code_or_data(&self) -> bool {
        self.bit(44)
    }

    pub fn is_code(&self) -> bool {
        self.code_or_data() && self.kind() & 8 != 0
    }

    pub fn conforming(&self) -> bool {
        self.is_code() && self.kind() & 4 != 0
    }

    pub fn is_writable_data(&self) -> bool {
        self.code_or_data() && self.kind() & 0b1010 == 0b0010
    }

    fn is_readable(&self) -> bool {
        self.code_or_data() && self.kind() & 0b1010 != 0b1000
    }

    pub fn long(&self) -> bool {
        self.bit(53)
    }

    pub fn db(&self) -> bool {
        self.bit(54)
    }

    /// The segment register that holds this descriptor.
    pub fn segment(&self, selector: u16) -> Segment {
        let limit = (self.raw as u32 & 0xffff) | (self.raw >> 32) as u32 & 0xf_0000;
        let accessed = if self.code_or_data() { ACCESSED } else { 0 };
        Segment {
            selector,
            base: self.raw >> 16 & 0xff_ffff | self.raw >> 56 << 24,
            limit: if self.bit(55) { limit << 12 | 0xfff } else { limit },
            kind: self.kind() | accessed,
            dpl: self.dpl,
            code_or_data: self.code_or_data(),
            long: self.long(),
            db: self.db(),
            present: self.present,
        }
    }
}

/// The segment registers a program can load by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SegmentName {
    Es,
    Ss,
    Ds,
    Fs,
    Gs,
}

impl<B: Bus> Step<'_, B> {
    /// The descriptor of a selector; `outside` is raised if the GDT does not reach so far, or if the
    /// selector names the LDT, of which there is none.
    pub(super) fn descriptor(&mut self, selector: u16, outside: Exception) -> Result<Descriptor, Abort> {
        let gdt = self.cpu.system.gdt;
        let offset = u64::from(selector & !7);
        if selector & 4 != 0 || offset + 7 > u64::from(gdt.limit) {
            return Err(outside.into());
        }
        let mut bytes = [0; 8];
        self.read_system(gdt.base.wrapping_add(offset), &mut bytes, Exception::protection(0))?;
        Ok(Descriptor::new(u64::from_le_bytes(bytes)))
    }

    /// Sets the accessed bit in the GDT, as loading a segment register does.
    pub(super) fn mark_accessed(&mut self, selector: u16, descriptor: &Descriptor) -> Result<(), Abort> {
        if descriptor.kind() & ACCESSED != 0 {
            return Ok(());
        }
        self.write_descriptor_type(selector, descriptor, ACCESSED)
    }

    fn write_descriptor_type(
        &mut self,
        selector: u16,
        descriptor: &Descriptor,
        set: u8,
    ) -> Result<(), Abort> {
        let address = self.cpu.system.gdt.base.wrapping_add(u64::from(selector & !7) + 5);
        let paging = self.cpu.implicit_paging();
        let byte = (descriptor.raw >> 40) as u8 | set;
        self.bus
            .write(&paging, Gva(address), &[byte])
            .map_err(|fault| Abort::from_system(fault, Exception::protection(0)))
    }

    /// Loads a data segment register or SS (`MOV Sreg`, `POP FS/GS`).
    pub(super) fn load_segment(&mut self, name: SegmentName, selector: u16) -> Result<(), Abort> {
        let segment = self.data_segment(name, selector)?;
        let system = &mut self.cpu.system;
        *match name {
            SegmentName::Es => &mut system.es,
            SegmentName::Ss => &mut system.ss,
            SegmentName::Ds => &mut system.ds,
            SegmentName::Fs => &mut system.fs,
            SegmentName::Gs => &mut system.gs,
        } = segment;
        Ok(())
    }

    fn data_segment(&mut self, name: SegmentName, selector: u16) -> Result<Segment, Abort> {
        let cpl = self.cpu.system.cpl();
        let rpl = (selector & 3) as u8;
        let stack = name == SegmentName::Ss;
        if selector & !3 == 0 {
            return match stack {
                false => Ok(Segment { selector, ..Segment::default() }),
                true if cpl < 3 && rpl == cpl => Ok(Segment { selector, ..Descriptor::null_stack(cpl) }),
                true => Err(Exception::protection(0).into()),
            };
        }
        let code = u32::from(selector & !3);
        let bad = Exception::protection(code);
        let descriptor = self.descriptor(selector, bad)?;
        let fits = if stack {
            descriptor.is_writable_data() && rpl == cpl && descriptor.dpl == cpl
        } else {
            descriptor.is_readable() && (descriptor.conforming() || descriptor.dpl >= rpl.max(cpl))
        };
        if !fits {
            return Err(bad.into());
        }
        if !descriptor.present {
            return Err(if stack { Exception::stack(code) } else { Exception::not_present(code) }.into());
        }
        self.mark_accessed(selector, &descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// `LTR`: a 16-byte descriptor, marked busy in the GDT.
    pub(super) fn load_task_register(&mut self, selector: u16) -> Result<(), Abort> {
        if selector & !3 == 0 {
            return Err(Exception::protection(0).into());
        }
        let bad = Exception::protection((selector & !3).into());
        let low = self.descriptor(selector, bad)?;
        if low.code_or_data() || low.kind() != TSS_AVAILABLE {
            return Err(bad.into());
        }
        if !low.present {
            return Err(Exception::not_present((selector & !3).into()).into());
        }
        let high = self.descriptor(selector.wrapping_add(8), bad)?;
        let segment = low.segment(selector);
        let base = segment.base | high.raw << 32;
        if !self.cpu.canonical(base) {
            return Err(bad.into());
        }
        self.write_descriptor_type(selector, &low, TSS_BUSY)?;
        self.cpu.system.tr = Segment { base, kind: TSS_BUSY, ..segment };
        Ok(())
    }
}
