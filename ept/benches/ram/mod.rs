//! The memory the benches walk: one block of atomic cells, each access checked against its end.
#![expect(
    unsafe_code,
    reason = "as memory of a machine is read: through a pointer, once the address is checked"
)]

use std::sync::atomic::{AtomicU64, Ordering};

use ept::{FrameAllocator, MemoryError, PhysMemory};

pub const FRAME: u64 = 4096;

/// Physical memory from 0 on, whose tables are allocated one after the other, with whatever they hold. It is never
/// freed.
pub struct Ram {
    /// Aligned to a frame.
    pub cells: &'static [AtomicU64],
    pub bytes: u64,
    /// Where the next table is allocated.
    pub next: u64,
}

impl Ram {
    /// `bytes` of zeroes; tables are allocated from the second frame on.
    pub fn new(bytes: u64) -> Self {
        let cells: Vec<_> = (0..bytes / 8 + FRAME / 8).map(|_| AtomicU64::new(0)).collect();
        let cells = cells.leak();
        let first = cells.as_ptr().align_offset(FRAME as usize);
        let cells = &cells[first..];
        Self { cells, bytes: cells.len() as u64 * 8, next: FRAME }
    }

    #[inline]
    fn cell(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        self.cells.get((address / 8) as usize).ok_or(MemoryError::Absent { address })
    }
}

impl PhysMemory for Ram {
    #[inline]
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        if address >= self.bytes {
            return Err(MemoryError::Absent { address });
        }
        // SAFETY: the cell begins, and so lies, in the first `bytes` bytes, which are a whole number of cells.
        let cell = unsafe { &*self.cells.as_ptr().byte_add((address & !7) as usize) };
        Ok(cell.load(Ordering::Acquire))
    }

    #[inline]
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let swapped = self.cell(address)?.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
        Ok(swapped.is_ok())
    }

    fn write_entries(&self, address: u64, entries: &[u64]) -> Result<(), MemoryError> {
        let first = (address / 8) as usize;
        let cells = self.cells.get(first..first + entries.len()).ok_or(MemoryError::Absent { address })?;
        cells.iter().zip(entries).for_each(|(cell, &entry)| cell.store(entry, Ordering::Release));
        Ok(())
    }
}

impl FrameAllocator for Ram {
    fn allocate_table(&mut self) -> Option<u64> {
        let table = self.next;
        self.cells.get(((table + FRAME) / 8) as usize - 1)?;
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
