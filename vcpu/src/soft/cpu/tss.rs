//! The task-state segment, as far as it names stacks and ports (SDM vol. 3A, 9.2).

use super::exceptions::Exception;
use super::step::{Abort, Step};
use crate::soft::Bus;

/// Bit 3 of the type of a TSS: it is one of 32 bits, or of 64.
const TSS_32: u8 = 8;

impl<B: Bus> Step<'_, B> {
    /// A stack pointer from the 64-bit TSS.
    pub(super) fn tss_pointer(&mut self, offset: u64, external: u32) -> Result<u64, Abort> {
        let mut bytes = [0; 8];
        self.read_tss(offset, &mut bytes, self.tss_fault(external))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The stack pointer and the stack segment of an inner ring, from the 16- or 32-bit TSS.
    pub(super) fn tss_stack(&mut self, cpl: u8, external: u32) -> Result<(u64, u16), Abort> {
        let wide = self.cpu.system.tr.kind & TSS_32 != 0;
        let size = if wide { 4 } else { 2 };
        let mut bytes = [0; 8];
        let offset = (size + 2 * size * usize::from(cpl)) as u64;
        // The upper half of the 32-bit SS field does not count.
        self.read_tss(offset, &mut bytes[..size + 2], self.tss_fault(external))?;
        let word = u64::from_le_bytes(bytes);
        let (pointer, selector) =
            if wide { (word as u32, word >> 32) } else { (word as u32 & 0xffff, word >> 16) };
        Ok((pointer.into(), selector as u16))
    }

    fn tss_fault(&self, external: u32) -> Exception {
        Exception::invalid_tss(u32::from(self.cpu.system.tr.selector & !3) | external)
    }

    /// Reads from the TSS; `outside` is raised past its limit.
    pub(super) fn read_tss(&mut self, offset: u64, buf: &mut [u8], outside: Exception) -> Result<(), Abort> {
        let tr = self.cpu.system.tr;
        if !tr.present || offset + buf.len() as u64 - 1 > u64::from(tr.limit) {
            return Err(outside.into());
        }
        self.read_system(tr.base.wrapping_add(offset), buf, outside)
    }
}
