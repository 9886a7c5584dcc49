//! The memory the benches walk: one block of atomic cells, each access checked against its end.

use std::sync::atomic::{AtomicU64, Ordering};

use ept::{FrameAllocator, MemoryError, PhysMemory};

pub const FRAME: u64 = 4096;

#[repr(C, align(4096))]
pub struct Frame([AtomicU64; 512]);

/// Physical memory from 0 on, whose tables are allocated one after the other.
pub struct Ram {
    pub frames: Vec<Frame>,
    /// Where the next table is allocated.
    pub next: u64,
}

impl Ram {
    /// `bytes` of zeroes; tables are allocated from the second frame on.
    pub fn new(bytes: u64) -> Self {
        let frames = (0..bytes / FRAME).map(|_| Frame([const { AtomicU64::new(0) }; 512])).collect();
        Self { frames, next: FRAME }
    }

    pub fn bytes(&self) -> u64 {
        self.frames.len() as u64 * FRAME
    }

    #[inline]
    fn cell(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        let frame = self.frames.get((address / FRAME) as usize).ok_or(MemoryError::Absent { address })?;
        Ok(&frame.0[(address % FRAME / 8) as usize])
    }
}

impl PhysMemory for Ram {
    #[inline]
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        Ok(self.cell(address)?.load(Ordering::Acquire))
    }

    #[inline]
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let swapped = self.cell(address)?.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        Ok(swapped.is_ok())
    }
}

impl FrameAllocator for Ram {
    fn allocate_table(&mut self) -> Option<u64> {
        let table = self.next;
        let frame = self.frames.get_mut((table / FRAME) as usize)?;
        frame.0.iter_mut().for_each(|cell| *cell.get_mut() = 0);
        self.next += FRAME;
        Some(table)
    }

    fn free_table(&mut self, _: u64) {}
}

/// A generator of the same numbers in each run (xorshift).
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
