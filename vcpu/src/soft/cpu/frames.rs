//! Frames: several words that a transfer pushes at once, perhaps onto another stack.

use memory_model::Gva;

use super::alu::Width;
use super::exceptions::Exception;
use super::memory::Linear;
use super::step::{Abort, Step};
use crate::soft::{Bus, BusFault, Paging};
use crate::{Gpr, Segment};

/// The longest frame: that of an exception in 64-bit mode has six words, `ENTER` has 32.
const MAX_FRAME: usize = 8 * 33;

/// A stack to push a frame onto.
pub(super) struct Stack {
    /// What SS holds, or will.
    pub segment: Segment,
    /// How much of `pointer` counts.
    pub width: Width,
    pub pointer: u64,
    /// Whose pushes they are.
    pub paging: Paging,
    /// What becomes of those that miss the segment.
    pub fault: Exception,
}

impl<B: Bus> Step<'_, B> {
    /// The program's stack.
    pub(super) fn own_stack(&self) -> Stack {
        let width = self.cpu.stack_width();
        Stack {
            segment: self.cpu.system.ss,
            width,
            pointer: self.gpr(Gpr::Rsp, width),
            paging: self.cpu.paging(),
            fault: Exception::stack(0),
        }
    }

    /// Pushes `words`, the first of them first. Gives the new stack pointer, which is not set yet.
    pub(super) fn push_frame(&mut self, stack: &Stack, width: Width, words: &[u64]) -> Result<u64, Abort> {
        let size = width.bytes();
        let mut bytes = [0; MAX_FRAME];
        for (slot, word) in bytes.chunks_exact_mut(size).zip(words.iter().rev()) {
            slot.copy_from_slice(&word.to_le_bytes()[..size]);
        }
        let bytes = &bytes[..size * words.len()];
        let len = bytes.len() as u64;
        let start = stack.pointer.wrapping_sub(len) & stack.width.mask();
        let end = start + (len - 1);
        if end <= stack.width.mask() || stack.width == Width::Qword {
            self.push_bytes(stack, start, bytes, size)?;
        } else {
            // Round the end of the segment, word by word.
            for (index, word) in bytes.chunks_exact(size).enumerate().rev() {
                let at = start.wrapping_add((index * size) as u64) & stack.width.mask();
                self.push_bytes(stack, at, word, size)?;
            }
        }
        Ok(start)
    }

    /// Writes words of `size` bytes at `at`.
    fn push_bytes(&mut self, stack: &Stack, at: u64, words: &[u8], size: usize) -> Result<(), Abort> {
        let address = match stack.width {
            Width::Qword => at,
            _ if !stack.segment.reaches(at, at + words.len() as u64 - 1) => return Err(stack.fault.into()),
            _ => u64::from(stack.segment.base.wrapping_add(at) as u32),
        };
        match self.bus.write(&stack.paging, Gva(address), words) {
            Ok(()) => Ok(()),
            Err(BusFault::Mmio { .. }) => self.push_to_device(stack, address, words, size),
            Err(fault) => Err(Abort::from_system(fault, stack.fault)),
        }
    }

    /// Writes word after word, as pushes do. A page of no device is known to be reachable, or is above and comes first.
    fn push_to_device(
        &mut self,
        stack: &Stack,
        address: u64,
        words: &[u8],
        size: usize,
    ) -> Result<(), Abort> {
        words.chunks_exact(size).enumerate().rev().try_for_each(|(index, word)| {
            let at = Linear { address: address.wrapping_add((index * size) as u64), stack: true };
            self.store_linear(at, word, &stack.paging)
        })
    }

    /// Pushes `words` onto the program's own stack.
    pub(super) fn push_all(&mut self, width: Width, words: &[u64]) -> Result<(), Abort> {
        let stack = self.own_stack();
        let pointer = self.push_frame(&stack, width, words)?;
        self.set_gpr(Gpr::Rsp, stack.width, pointer);
        Ok(())
    }
}
