//! MXCSR, and the image of all registers (SDM vol. 1, 10.5).

use std::ops::Range;

use super::{Outcome, check};
use crate::cr0;
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::cpuid::Feature;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::step::{Abort, Step};
use crate::soft::{AccessKind, Bus};

/// MXCSR after reset: all exceptions masked.
pub(in crate::soft::cpu) const MXCSR: u32 = 0x1f80;
/// Bits of MXCSR that exist, with "denormals are zeros".
const MXCSR_MASK: u32 = 0xffff;

/// Where things are in the image.
const AT_X87_STATUS: Range<usize> = 2..5;
const AT_MXCSR: usize = 24;
const AT_MXCSR_MASK: usize = 28;
const AT_XMM: usize = 160;
/// Behind XMM15. The processor does not touch what follows.
const IMAGE: usize = AT_XMM + 16 * 16;

impl<B: Bus> Step<'_, B> {
    pub(in crate::soft::cpu::exec) fn ldmxcsr(&mut self) -> Outcome {
        self.requires_vectors(Feature::SSE)?;
        let value = self.load(self.memory_operand(), Width::Dword, AccessKind::Read)? as u32;
        self.set_mxcsr(value)
    }

    pub(in crate::soft::cpu::exec) fn stmxcsr(&mut self) -> Outcome {
        self.requires_vectors(Feature::SSE)?;
        self.store(self.memory_operand(), Width::Dword, self.cpu.mxcsr.into())
    }

    fn set_mxcsr(&mut self, value: u32) -> Outcome {
        check(value & !MXCSR_MASK == 0)?;
        self.cpu.mxcsr = value;
        Ok(())
    }

    /// `FXSAVE`. The x87 has a control word only: its registers are empty, and its pointers 0.
    pub(in crate::soft::cpu::exec) fn fxsave(&mut self) -> Outcome {
        let len = self.image_length()?;
        let mut image = [0; IMAGE];
        image[..2].copy_from_slice(&self.cpu.x87_control.to_le_bytes());
        image[AT_MXCSR..][..4].copy_from_slice(&self.cpu.mxcsr.to_le_bytes());
        image[AT_MXCSR_MASK..][..4].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for (bytes, register) in image[AT_XMM..].as_chunks_mut().0.iter_mut().zip(self.cpu.xmm) {
            *bytes = register.to_le_bytes();
        }
        // All of it must be sure to have a place before any is written.
        for at in (0..len).step_by(16) {
            self.check_access(self.memory_operand_at(at as u64), 16, AccessKind::Write)?;
        }
        for at in (0..len).step_by(16) {
            self.store_bytes(self.memory_operand_at(at as u64), &image[at..at + 16])?;
        }
        Ok(())
    }

    /// `FXRSTOR` of an image like those of `FXSAVE`.
    pub(in crate::soft::cpu::exec) fn fxrstor(&mut self) -> Outcome {
        let len = self.image_length()?;
        let mut image = [0; IMAGE];
        for at in (0..len).step_by(16) {
            self.load_bytes(self.memory_operand_at(at as u64), &mut image[at..at + 16], AccessKind::Read)?;
        }
        // Status word and tags: there are no registers of the x87 to fill.
        if image[AT_X87_STATUS] != [0; 3] {
            return Err(Abort::Unimplemented);
        }
        let [m0, m1, m2, m3] = [0, 1, 2, 3].map(|i| image[AT_MXCSR + i]);
        self.set_mxcsr(u32::from_le_bytes([m0, m1, m2, m3]))?;
        self.cpu.x87_control = u16::from_le_bytes([image[0], image[1]]);
        for (register, bytes) in self.cpu.xmm.iter_mut().zip(image[AT_XMM..len].as_chunks().0) {
            *register = u128::from_le_bytes(*bytes);
        }
        Ok(())
    }

    /// The bytes of the image, if it may be accessed: outside 64-bit mode there are eight registers.
    fn image_length(&mut self) -> Result<usize, Abort> {
        self.requires(Feature::FXSR)?;
        if self.cpu.system.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(Exception::DEVICE_NOT_AVAILABLE.into());
        }
        self.check_vector_alignment(self.memory_operand(), AccessKind::Read)?;
        Ok(if self.cpu.in_64_bit_mode() { IMAGE } else { IMAGE - 8 * 16 })
    }
}
