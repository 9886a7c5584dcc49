//! Segment descriptors: reading the GDT and the LDT, loading segment registers, TR and LDTR (SDM vol. 3A, 3.4.5
//! and 3.5).

use memory_model::Gva;

use super::exceptions::Exception;
use super::segments::{ACCESSED, CODE, CONFORMING, REAL_MODE_LIMIT, SegmentName, WRITABLE};
use super::step::{Abort, Step};
use crate::Segment;
use crate::soft::{AccessKind, Bus};

/// A code, data or system descriptor. Of a 64-bit system descriptor this is the lower half.
#[derive(Clone, Copy)]
pub(super) struct Descriptor {
    raw: u64,
    pub dpl: u8,
    pub present: bool,
}

/// Types of system segments. A TSS of 16 bits has one bit less than one of 32 or 64; a busy one has one more.
const LDT: u8 = 2;
const TSS_16: u8 = 1;
const TSS: u8 = 9;
const TSS_BUSY: u8 = 2;

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

    pub fn kind(&self) -> u8 {
        (self.raw >> 40) as u8 & 0xf
    }

    pub fn code_or_data(&self) -> bool {
        self.bit(44)
    }

    pub fn is_code(&self) -> bool {
        self.code_or_data() && self.kind() & CODE != 0
    }

    pub fn conforming(&self) -> bool {
        self.is_code() && self.kind() & CONFORMING != 0
    }

    pub fn is_writable_data(&self) -> bool {
        self.code_or_data() && self.kind() & (CODE | WRITABLE) == WRITABLE
    }

    pub fn is_readable(&self) -> bool {
        self.code_or_data() && self.kind() & (CODE | WRITABLE) != CODE
    }

    pub fn long(&self) -> bool {
        self.bit(53)
    }

    pub fn db(&self) -> bool {
        self.bit(54)
    }

    /// The upper half, as `LAR` sees it.
    pub fn access_rights(&self) -> u64 {
        self.raw >> 32 & 0x00f0_ff00
    }

    /// In bytes.
    pub fn limit(&self) -> u32 {
        let limit = (self.raw as u32 & 0xffff) | (self.raw >> 32) as u32 & 0xf_0000;
        if self.bit(55) { limit << 12 | 0xfff } else { limit }
    }

    /// The segment register that holds this descriptor.
    pub fn segment(&self, selector: u16) -> Segment {
        let accessed = if self.code_or_data() { ACCESSED } else { 0 };
        Segment {
            selector,
            base: self.raw >> 16 & 0xff_ffff | self.raw >> 56 << 24,
            limit: self.limit(),
            kind: self.kind() | accessed,
            dpl: self.dpl,
            code_or_data: self.code_or_data(),
            long: self.long(),
            db: self.db(),
            present: self.present,
        }
    }
}

impl<B: Bus> Step<'_, B> {
    /// Reads a descriptor table or the TSS: an implicit supervisor access.
    pub(super) fn read_system(
        &mut self,
        address: u64,
        buf: &mut [u8],
        not_canonical: Exception,
    ) -> Result<(), Abort> {
        let (address, paging) = (self.system_address(address), self.cpu.implicit_paging());
        self.bus
            .read(&paging, address, buf, AccessKind::Read)
            .map_err(|fault| Abort::from_system(fault, not_canonical))
    }

    fn system_address(&self, address: u64) -> Gva {
        Gva(if self.cpu.in_long_mode() { address } else { u64::from(address as u32) })
    }

    /// Where a selector's descriptor is; `None` if its table does not reach so far.
    fn descriptor_address(&self, selector: u16) -> Option<u64> {
        let offset = u64::from(selector & !7);
        let (base, limit) = match selector & 4 {
            0 => (self.cpu.system.gdt.base, self.cpu.system.gdt.limit.into()),
            _ if self.cpu.system.ldt.present => (self.cpu.system.ldt.base, self.cpu.system.ldt.limit),
            _ => return None,
        };
        (offset + 7 <= u64::from(limit)).then_some(base.wrapping_add(offset))
    }

    /// The descriptor of a selector; `outside` is raised if there is none.
    pub(super) fn descriptor(&mut self, selector: u16, outside: Exception) -> Result<Descriptor, Abort> {
        Ok(self.find_descriptor(selector)?.ok_or(outside)?)
    }

    /// The descriptor of a selector, if there is one.
    pub(super) fn find_descriptor(&mut self, selector: u16) -> Result<Option<Descriptor>, Abort> {
        let Some(address) = self.descriptor_address(selector) else { return Ok(None) };
        let mut bytes = [0; 8];
        self.read_system(address, &mut bytes, Exception::protection(0))?;
        Ok(Some(Descriptor::new(u64::from_le_bytes(bytes))))
    }

    /// Sets the accessed bit in the table, as loading a segment register does.
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
        let Some(address) = self.descriptor_address(selector) else { return Ok(()) };
        let (address, paging) = (self.system_address(address.wrapping_add(5)), self.cpu.implicit_paging());
        let byte = (descriptor.raw >> 40) as u8 | set;
        self.bus
            .write(&paging, address, &[byte])
            .map_err(|fault| Abort::from_system(fault, Exception::protection(0)))
    }

    /// Loads a data segment register or SS (`MOV`, `POP`, `LDS` and its kin).
    pub(super) fn load_segment(&mut self, name: SegmentName, selector: u16) -> Result<(), Abort> {
        *self.cpu.system.segment_mut(name) = match self.cpu.in_protected_mode() {
            true => self.data_segment(name, selector)?,
            false => real_mode_segment(self.cpu.system.segment(name), selector),
        };
        Ok(())
    }

    /// CS in real mode.
    pub(super) fn set_real_mode_cs(&mut self, selector: u16) {
        self.cpu.system.cs = real_mode_segment(&self.cpu.system.cs, selector);
    }

    fn data_segment(&mut self, name: SegmentName, selector: u16) -> Result<Segment, Abort> {
        let cpl = self.cpu.system.cpl();
        let rpl = (selector & 3) as u8;
        let stack = name == SegmentName::Ss;
        if selector & !3 == 0 {
            return match stack {
                false => Ok(Segment { selector, ..Segment::default() }),
                true if self.cpu.in_64_bit_mode() && cpl < 3 && rpl == cpl => {
                    Ok(Segment { selector, ..Descriptor::null_stack(cpl) })
                }
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

    /// `LTR`: an available TSS, marked busy in the GDT.
    pub(super) fn load_task_register(&mut self, selector: u16) -> Result<(), Abort> {
        if selector & !3 == 0 {
            return Err(Exception::protection(0).into());
        }
        let kinds: &[u8] = if self.cpu.in_long_mode() { &[TSS] } else { &[TSS, TSS_16] };
        let (descriptor, segment) = self.system_segment(selector, kinds)?;
        self.write_descriptor_type(selector, &descriptor, TSS_BUSY)?;
        self.cpu.system.tr = Segment { kind: segment.kind | TSS_BUSY, ..segment };
        Ok(())
    }

    /// `LLDT`: without a table if the selector is null.
    pub(super) fn load_local_table(&mut self, selector: u16) -> Result<(), Abort> {
        self.cpu.system.ldt = match selector & !3 {
            0 => Segment { selector, kind: LDT, ..Segment::default() },
            _ => self.system_segment(selector, &[LDT])?.1,
        };
        Ok(())
    }

    /// A system segment of one of `kinds`, from the GDT. In long mode its descriptor has 16 bytes.
    fn system_segment(&mut self, selector: u16, kinds: &[u8]) -> Result<(Descriptor, Segment), Abort> {
        let code = u32::from(selector & !3);
        let bad = Exception::protection(code);
        if selector & 4 != 0 {
            return Err(bad.into());
        }
        let descriptor = self.descriptor(selector, bad)?;
        if descriptor.code_or_data() || !kinds.contains(&descriptor.kind()) {
            return Err(bad.into());
        }
        if !descriptor.present {
            return Err(Exception::not_present(code).into());
        }
        let mut segment = descriptor.segment(selector);
        if self.cpu.in_long_mode() {
            segment.base |= self.descriptor(selector.wrapping_add(8), bad)?.raw << 32;
            if !self.cpu.canonical_if_widest(segment.base) {
                return Err(bad.into());
            }
        }
        Ok((descriptor, segment))
    }
}

/// A segment register loaded in real mode: limit and attributes stay, but for those of no segment.
fn real_mode_segment(before: &Segment, selector: u16) -> Segment {
    let base = u64::from(selector) << 4;
    if before.present {
        return Segment { selector, base, dpl: 0, ..*before };
    }
    let kind = WRITABLE | ACCESSED;
    let fresh =
        Segment { kind, limit: REAL_MODE_LIMIT, code_or_data: true, present: true, ..Segment::default() };
    Segment { selector, base, ..fresh }
}
