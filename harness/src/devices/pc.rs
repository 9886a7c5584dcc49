//! What a PC has in its memory beside RAM and its interrupt controllers, which are the VM's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use memory_model::{AccessRules, MemTxAttrs, MemTxError, MemoryError, MmioOps, RegionTree};

const TEST_MEMORY: u64 = 0xff00_0000;
const TEST_MEMORY_SIZE: usize = 0x1_0000;

/// Above RAM.
const PRIORITY: i32 = 0x1000;

/// Adds the memory of QEMU's `pc-testdev`.
pub(crate) fn add_devices(tree: &mut RegionTree) -> Result<(), MemoryError> {
    let test_memory = (0..TEST_MEMORY_SIZE).map(|_| AtomicU8::new(0)).collect();
    let test = tree.mmio("pc-testdev", TEST_MEMORY_SIZE as u128, Arc::new(TestMemory(test_memory)))?;
    tree.add_with_priority(tree.root(), TEST_MEMORY, test, PRIORITY)
}

/// Bytes that are read as they were written, but by way of the VMM.
#[derive(Debug)]
struct TestMemory(Box<[AtomicU8]>);

impl TestMemory {
    fn bytes(&self, offset: u64, size: u8) -> Result<&[AtomicU8], MemTxError> {
        let first = usize::try_from(offset).map_err(|_| MemTxError::Decode)?;
        self.0.get(first..).and_then(|from| from.get(..size.into())).ok_or(MemTxError::Decode)
    }
}

impl MmioOps for TestMemory {
    fn read(&self, offset: u64, size: u8, _attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        let mut value = [0; 8];
        for (to, byte) in value.iter_mut().zip(self.bytes(offset, size)?) {
            *to = byte.load(Ordering::Relaxed);
        }
        Ok(u64::from_le_bytes(value))
    }
    fn write(&self, offset: u64, size: u8, value: u64, _attrs: MemTxAttrs) -> Result<(), MemTxError> {
        for (byte, from) in self.bytes(offset, size)?.iter().zip(value.to_le_bytes()) {
            byte.store(from, Ordering::Relaxed);
        }
        Ok(())
    }
    fn rules(&self) -> AccessRules {
        AccessRules::ANY
    }
}
