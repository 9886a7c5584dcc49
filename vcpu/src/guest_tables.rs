//! Guest-physical memory as page tables see it: the guest's own tables, read and built from outside.

use ept::{MemoryError, PhysMemory};
use memory_model::{FlatView, Gpa, RamBlock};

/// The entries in a guest's RAM, reached through a flat view.
pub struct GuestTables<'a>(pub &'a FlatView);

impl GuestTables<'_> {
    fn block(&self, address: u64) -> Result<(&RamBlock, u64), MemoryError> {
        let found = self
            .0
            .find(Gpa(address))
            .and_then(|range| Some((&**range.ram()?, range.region_offset(Gpa(address))?)));
        found.ok_or(MemoryError::Absent { address })
    }

    /// Zeroes the 4 KiB frame at `address`.
    pub(crate) fn zero(&self, address: u64) -> Result<(), MemoryError> {
        self.write_frame(address, &[0; 4096])
    }

    /// Writes the 4 KiB frame at `address`.
    pub(crate) fn write_frame(&self, address: u64, bytes: &[u8; 4096]) -> Result<(), MemoryError> {
        let (block, offset) = self.block(address)?;
        block.write(offset, bytes).map_err(|_| MemoryError::Absent { address })
    }
}

impl PhysMemory for GuestTables<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        let (block, offset) = self.block(address)?;
        block.load_u64(offset).map_err(|_| MemoryError::Absent { address })
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let (block, offset) = self.block(address)?;
        let found = block.compare_exchange_u64(offset, current, new);
        found.map(|found| found == current).map_err(|_| MemoryError::Absent { address })
    }
}
