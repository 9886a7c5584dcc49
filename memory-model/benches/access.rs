//! Accesses through a view: memory against `GuestMemoryMmap`, devices against calling them directly.

#[path = "paired/mod.rs"]
mod paired;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory_model::{
    AccessRules, FlatView, Gpa, MemTxAttrs, MemTxError, MemoryError, MmioOps, RamBlock, RegionTree,
};
use paired::{compare, head};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const REGIONS: u64 = 9;
const REGION_BYTES: u64 = 0x2_0000;
/// A device lies behind each piece of memory.
const STRIDE: u64 = 2 * REGION_BYTES;
const ROUNDS: usize = 31;
const PER_ROUND: u32 = 1 << 16;

fn main() -> Result<(), MemoryError> {
    let addresses: Vec<u64> = random_addresses().collect();
    let peer: Vec<_> =
        (0..REGIONS).map(|index| (GuestAddress(index * STRIDE), REGION_BYTES as usize)).collect();
    let peer: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&peer).expect("memory");

    let device = Arc::new(Register::default());
    let view = view(device.clone())?;
    let bus = view.bus();

    head("8 bytes of memory, 18 ranges, random addresses (peer: GuestMemoryMmap)");
    let mut word = [0; 8];
    let ours = || {
        for &at in &addresses {
            bus.read(black_box(Gpa(at)), &mut word).expect("memory");
            black_box(word);
        }
    };
    let mut word = [0; 8];
    let theirs = || {
        for &at in &addresses {
            peer.read_slice(&mut word, black_box(GuestAddress(at))).expect("memory");
            black_box(word);
        }
    };
    compare("read", Some(1.00), ROUNDS, PER_ROUND, ours, theirs);
    let ours = || addresses.iter().for_each(|&at| bus.write(Gpa(at), &at.to_le_bytes()).expect("memory"));
    let theirs = || {
        for &at in &addresses {
            peer.write_slice(&at.to_le_bytes(), GuestAddress(at)).expect("memory");
        }
    };
    compare("write", Some(1.00), ROUNDS, PER_ROUND, ours, theirs);

    head("4 bytes of a device, 18 ranges, random addresses (peer: the callback alone)");
    let device: &dyn MmioOps = &*device;
    let attrs = MemTxAttrs::default();
    let mut word = [0; 4];
    let ours = || {
        for &at in &addresses {
            bus.read(black_box(Gpa(at + REGION_BYTES)), &mut word).expect("a device");
            black_box(word);
        }
    };
    let theirs = || {
        for &at in &addresses {
            black_box(black_box(device).read(black_box(at), 4, attrs)).expect("it never fails");
        }
    };
    compare("read", None, ROUNDS, PER_ROUND, ours, theirs);
    let ours = || {
        for &at in &addresses {
            bus.write(Gpa(at + REGION_BYTES), &(at as u32).to_le_bytes()).expect("a device");
        }
    };
    let theirs = || {
        addresses.iter().for_each(|&at| black_box(device).write(at, 4, at, attrs).expect("it never fails"))
    };
    compare("write", None, ROUNDS, PER_ROUND, ours, theirs);
    Ok(())
}

/// A device with one register.
#[derive(Default)]
struct Register(AtomicU64);

impl MmioOps for Register {
    fn read(&self, _: u64, _: u8, _: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(self.0.load(Ordering::Relaxed))
    }
    fn write(&self, _: u64, _: u8, value: u64, _: MemTxAttrs) -> Result<(), MemTxError> {
        self.0.store(value, Ordering::Relaxed);
        Ok(())
    }
    fn rules(&self) -> AccessRules {
        AccessRules::DEFAULT
    }
}

fn view(device: Arc<Register>) -> Result<FlatView, MemoryError> {
    let mut tree = RegionTree::new("system", 1 << 64)?;
    for index in 0..REGIONS {
        let ram = tree.ram("ram", RamBlock::anonymous("ram", REGION_BYTES)?)?;
        tree.add(tree.root(), index * STRIDE, ram)?;
        let mmio = tree.mmio("mmio", REGION_BYTES.into(), device.clone())?;
        tree.add(tree.root(), index * STRIDE + REGION_BYTES, mmio)?;
    }
    FlatView::render(&tree)
}

/// Aligned addresses of memory, from a fixed seed (xorshift).
fn random_addresses() -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % REGIONS * STRIDE + (state >> 32) % (REGION_BYTES / 8) * 8
    })
    .take(PER_ROUND as usize)
}
