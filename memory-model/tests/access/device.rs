//! A device that remembers, and short ways to build a space.

use std::sync::{Arc, Mutex};

use memory_model::{
    AccessRules, AddressSpace, Endianness, MemTxAttrs, MemTxError, MemoryError, MmioOps, RamBlock, RegionId,
    RegionTree,
};

/// What reached a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// The hook was asked about an access of `size` bytes.
    Asked {
        offset: u64,
        size: u8,
        write: bool,
    },
    Read {
        offset: u64,
        size: u8,
    },
    Write {
        offset: u64,
        size: u8,
        value: u64,
    },
}

/// A device that keeps bytes, as a memory chip behind its bus would, and all calls.
pub struct Device {
    pub rules: AccessRules,
    pub bytes: Mutex<Vec<u8>>,
    calls: Mutex<Vec<Call>>,
    /// Remember when the hook is asked, and answer so.
    pub accepts: Option<bool>,
}

impl Device {
    pub fn new(rules: AccessRules, bytes: Vec<u8>) -> Self {
        Self { rules, bytes: Mutex::new(bytes), calls: Mutex::default(), accepts: None }
    }

    /// With the bytes 0, 1, 2, ...
    pub fn counting(rules: AccessRules) -> Arc<Self> {
        Arc::new(Self::new(rules, (0..64).collect()))
    }

    /// The calls since last asked.
    pub fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl MmioOps for Device {
    fn read(&self, offset: u64, size: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
        self.calls.lock().unwrap().push(Call::Read { offset, size });
        let bytes = self.bytes.lock().unwrap();
        let place = |index: u8| match self.rules.endianness {
            Endianness::Little => index,
            Endianness::Big => size - 1 - index,
        };
        Ok((0..size)
            .map(|index| u64::from(bytes[offset as usize + usize::from(index)]) << (8 * place(index)))
            .sum())
    }

    fn write(&self, offset: u64, size: u8, value: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
        self.calls.lock().unwrap().push(Call::Write { offset, size, value });
        let mut bytes = self.bytes.lock().unwrap();
        for index in 0..size {
            let place = match self.rules.endianness {
                Endianness::Little => index,
                Endianness::Big => size - 1 - index,
            };
            bytes[offset as usize + usize::from(index)] = (value >> (8 * place)) as u8;
        }
        Ok(())
    }

    fn rules(&self) -> AccessRules {
        self.rules
    }

    fn accepts(&self, offset: u64, size: u8, write: bool, _: MemTxAttrs) -> bool {
        if self.accepts.is_some() {
            self.calls.lock().unwrap().push(Call::Asked { offset, size, write });
        }
        self.accepts.unwrap_or(true)
    }
}

/// A space with what `build` puts into it.
pub fn space_of(build: impl FnOnce(&mut RegionTree) -> Result<(), MemoryError>) -> AddressSpace {
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    space.update(build).unwrap();
    space
}

/// A space with one device of 0x1000 bytes at 0.
pub fn space_with(ops: Arc<dyn MmioOps>) -> AddressSpace {
    space_of(|tree| {
        let device = tree.mmio("device", 0x1000, ops)?;
        tree.add(tree.root(), 0, device)
    })
}

/// RAM of one page at `gpa`, filled with `byte`.
pub fn add_page(tree: &mut RegionTree, gpa: u64, byte: u8) -> Result<RegionId, MemoryError> {
    let ram = tree.ram("ram", page(byte))?;
    tree.add(tree.root(), gpa, ram)?;
    Ok(ram)
}

/// One page of memory, filled with `byte`.
pub fn page(byte: u8) -> Arc<RamBlock> {
    let block = RamBlock::anonymous("page", 0x1000).unwrap();
    block.write(0, &[byte; 0x1000]).unwrap();
    block
}
