//! Physical memory as page tables see it: 64-bit entries, read and compare-exchanged.
//!
//! Addresses are plain `u64`: the same trait serves guest-physical memory (a guest's own tables)
//! and host-physical memory (EPT, NPT and shadow tables).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicU64, Ordering};

use memory_model::PageSize;

/// Why a physical address could not be accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MemoryError {
    /// No memory answers there.
    #[error("no memory at {address:#x}")]
    Absent {
        /// The physical address.
        address: u64,
    },
    /// The memory there is read-only.
    #[error("memory at {address:#x} is read-only")]
    ReadOnly {
        /// The physical address.
        address: u64,
    },
}

/// Memory that holds page tables. Addresses are multiples of eight; each access is one atomic access, since
/// other processors may write the same entry.
pub trait PhysMemory {
    /// Reads the entry at `address`.
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError>;

    /// Reads the 512 entries of the table at `table`, a multiple of 4096, each by an access of its own.
    fn read_table(&self, table: u64, entries: &mut [u64; 512]) -> Result<(), MemoryError> {
        for (index, entry) in (0..).zip(entries) {
            *entry = self.read_entry(table + index * 8)?;
        }
        Ok(())
    }

    /// Writes `new` if the entry still is `current`; `false` if it has changed.
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError>;

    /// Writes consecutive entries of one table, from `address` on, whatever they were. They are entries that no other
    /// processor writes: absent ones, or those of a table that is not linked yet. Plain stores do; whoever sees a
    /// later exchange must see them.
    fn write_entries(&self, address: u64, entries: &[u64]) -> Result<(), MemoryError> {
        for (at, &entry) in (address..).step_by(8).zip(entries) {
            while !self.compare_exchange(at, self.read_entry(at)?, entry)? {}
        }
        Ok(())
    }
}

/// Gives and takes back 4 KiB frames for tables.
pub trait FrameAllocator {
    /// A frame, or `None` if there is none left. What it holds does not matter.
    fn allocate_table(&mut self) -> Option<u64>;

    /// Takes back a frame that [`allocate_table`](Self::allocate_table) gave. A processor may still hold
    /// translations that came through it: an allocator whose memory is walked by others must wait for their
    /// flush before it gives the frame out again.
    fn free_table(&mut self, frame: u64);
}

type Frame = Box<[AtomicU64; ENTRIES]>;
const ENTRIES: usize = 512;
const FRAME: u64 = PageSize::Size4K.bytes();

/// A [`PhysMemory`] made of single frames, with an allocator: for examples, tests and offline tables.
///
/// ```
/// use ept::{FrameAllocator, PhysMemory, SparseMemory};
/// let mut memory = SparseMemory::allocating_from(0x10_0000);
/// let table = memory.allocate_table().unwrap();
/// memory.write_entry(table + 8, 0x1234)?;
/// assert_eq!(memory.read_entry(table + 8)?, 0x1234);
/// assert!(memory.read_entry(0).is_err());
/// # Ok::<(), ept::MemoryError>(())
/// ```
#[derive(Debug, Default)]
pub struct SparseMemory {
    frames: BTreeMap<u64, Frame>,
    next: u64,
}

impl SparseMemory {
    /// Memory without a frame; tables are allocated at `base` (rounded down to a frame) and above.
    pub fn allocating_from(base: u64) -> Self {
        Self { frames: BTreeMap::new(), next: base & !(FRAME - 1) }
    }

    /// Adds a zeroed frame around `address`, unless it is there already.
    pub fn add_frame(&mut self, address: u64) {
        self.frames
            .entry(address / FRAME)
            .or_insert_with(|| Box::new([const { AtomicU64::new(0) }; ENTRIES]));
    }

    /// Writes the entry at `address`, whatever it was.
    pub fn write_entry(&self, address: u64, value: u64) -> Result<(), MemoryError> {
        self.entry(address)?.store(value, Ordering::Release);
        Ok(())
    }

    /// How many frames there are.
    pub fn frame_count(&self) -> usize {
        self.frames.len()
    }

    fn entry(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        let frame = self.frames.get(&(address / FRAME)).ok_or(MemoryError::Absent { address })?;
        Ok(&frame[(address % FRAME / 8) as usize])
    }
}

impl PhysMemory for SparseMemory {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        Ok(self.entry(address)?.load(Ordering::Acquire))
    }

    fn read_table(&self, table: u64, entries: &mut [u64; ENTRIES]) -> Result<(), MemoryError> {
        let frame = self.frames.get(&(table / FRAME)).ok_or(MemoryError::Absent { address: table })?;
        entries.iter_mut().zip(frame.iter()).for_each(|(to, from)| *to = from.load(Ordering::Acquire));
        Ok(())
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let entry = self.entry(address)?;
        Ok(entry.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).is_ok())
    }

    fn write_entries(&self, address: u64, entries: &[u64]) -> Result<(), MemoryError> {
        let frame = self.frames.get(&(address / FRAME)).ok_or(MemoryError::Absent { address })?;
        for (to, &entry) in frame[(address % FRAME / 8) as usize..].iter().zip(entries) {
            to.store(entry, Ordering::Release);
        }
        Ok(())
    }
}

impl FrameAllocator for SparseMemory {
    fn allocate_table(&mut self) -> Option<u64> {
        while self.frames.contains_key(&(self.next / FRAME)) {
            self.next = self.next.checked_add(FRAME)?;
        }
        let frame = self.next;
        self.add_frame(frame);
        Some(frame)
    }

    fn free_table(&mut self, frame: u64) {
        self.frames.remove(&(frame / FRAME));
        self.next = self.next.min(frame);
    }
}
