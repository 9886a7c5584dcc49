//! Segmentation: from an offset in a segment to a linear address (SDM vol. 3A, 3.3 and 5.3 to 5.5).

use iced_x86::Register;

use super::exceptions::Exception;
use super::memory::Linear;
use super::step::{Abort, Step};
use crate::soft::{AccessKind, Bus};
use crate::{Segment, SystemRegs};

/// The six segment registers, by their numbers in instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

impl SegmentName {
    pub fn of(register: Register) -> Option<Self> {
        Some(match register {
            Register::ES => Self::Es,
            Register::CS => Self::Cs,
            Register::SS => Self::Ss,
            Register::DS => Self::Ds,
            Register::FS => Self::Fs,
            Register::GS => Self::Gs,
            _ => return None,
        })
    }
}

impl SystemRegs {
    pub(super) fn segment(&self, name: SegmentName) -> &Segment {
        match name {
            SegmentName::Es => &self.es,
            SegmentName::Cs => &self.cs,
            SegmentName::Ss => &self.ss,
            SegmentName::Ds => &self.ds,
            SegmentName::Fs => &self.fs,
            SegmentName::Gs => &self.gs,
        }
    }

    pub(super) fn segment_mut(&mut self, name: SegmentName) -> &mut Segment {
        match name {
            SegmentName::Es => &mut self.es,
            SegmentName::Cs => &mut self.cs,
            SegmentName::Ss => &mut self.ss,
            SegmentName::Ds => &mut self.ds,
            SegmentName::Fs => &mut self.fs,
            SegmentName::Gs => &mut self.gs,
        }
    }
}

/// Bits of the type of a code or data segment.
pub(super) const CODE: u8 = 8;
/// Of a code segment; of a data segment the same bit says expand-down.
pub(super) const CONFORMING: u8 = 4;
/// Of a data segment; of a code segment the same bit says readable.
pub(super) const WRITABLE: u8 = 2;
pub(super) const ACCESSED: u8 = 1;

/// The limit of every segment after reset, and what real mode means by a segment.
pub(super) const REAL_MODE_LIMIT: u32 = 0xffff;

impl Segment {
    fn allows(&self, kind: AccessKind) -> bool {
        self.present
            && match kind {
                AccessKind::Read => self.kind & (CODE | WRITABLE) != CODE,
                AccessKind::Write => self.kind & (CODE | WRITABLE) == WRITABLE,
                AccessKind::Fetch => self.kind & CODE != 0,
            }
    }

    /// Whether the bytes `first..=last` lie within the limit.
    pub(super) fn reaches(&self, first: u64, last: u64) -> bool {
        let limit = u64::from(self.limit);
        if self.kind & (CODE | CONFORMING) == CONFORMING {
            // Expand-down: what lies above the limit, up to what B says.
            first > limit && last <= if self.db { u32::MAX.into() } else { REAL_MODE_LIMIT.into() }
        } else {
            last <= limit
        }
    }
}

/// An address as a program gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Logical {
    pub segment: SegmentName,
    pub offset: u64,
}

impl Logical {
    pub fn stack(offset: u64) -> Self {
        Self { segment: SegmentName::Ss, offset }
    }

    /// #SS for what goes through SS, else #GP.
    pub fn fault(self) -> Exception {
        if self.segment == SegmentName::Ss { Exception::stack(0) } else { Exception::protection(0) }
    }
}

impl<B: Bus> Step<'_, B> {
    /// The linear address of `len` bytes, which the segment must allow. In 64-bit mode only FS and GS have a
    /// base, and nothing has a limit; that an address is canonical is the bus's to check.
    pub(super) fn linear(&self, at: Logical, len: usize, kind: AccessKind) -> Result<Linear, Abort> {
        let stack = at.segment == SegmentName::Ss;
        let segment = self.cpu.system.segment(at.segment);
        if self.cpu.in_64_bit_mode() {
            let based = matches!(at.segment, SegmentName::Fs | SegmentName::Gs);
            let base = if based { segment.base } else { 0 };
            return Ok(Linear { address: self.cpu.untagged(base.wrapping_add(at.offset)), stack });
        }
        let allowed = !self.cpu.in_protected_mode() || segment.allows(kind);
        if !allowed || !segment.reaches(at.offset, at.offset + len as u64 - 1) {
            return Err(at.fault().into());
        }
        Ok(Linear { address: u64::from(segment.base.wrapping_add(at.offset) as u32), stack })
    }
}
