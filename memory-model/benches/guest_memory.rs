//! Reads and writes through vm-memory's traits: the flat view against `GuestMemoryMmap`.

#[path = "paired/mod.rs"]
mod paired;

use std::hint::black_box;

use memory_model::{DirtyClients, DmaView, FlatView, MemoryError, RamBlock, RegionTree};
use paired::{compare, head};
use vm_memory::bitmap::{AtomicBitmap, Bitmap, NewBitmap};
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

const REGION_BYTES: u64 = 0x2_0000;
/// Regions lie twice as far apart as they are long: they do not merge, and there are holes.
const STRIDE: u64 = 2 * REGION_BYTES;
const ROUNDS: usize = 31;
const PER_ROUND: u32 = 1 << 16;

fn main() -> Result<(), MemoryError> {
    for regions in [9, 256] {
        head(&format!("translate + 8 bytes, {regions} regions, random addresses"));
        let addresses: Vec<GuestAddress> = random_addresses(regions).collect();
        let (view, plain) = (flat_view(regions, DirtyClients::empty())?, mmap::<()>(regions));
        both("no dirty bits", &addresses, &view, &plain);
        let (view, noted) = (flat_view(regions, DirtyClients::MIGRATION)?, mmap::<AtomicBitmap>(regions));
        both("dirty bits", &addresses, &view, &noted);
        both("dirty bits, as a device", &addresses, &DmaView::new(view.into()), &noted);
    }
    Ok(())
}

fn both(name: &str, addresses: &[GuestAddress], ours: &impl GuestMemory, peer: &impl GuestMemory) {
    // Pages that were never written are all the same one, and always cached.
    write(ours, addresses);
    write(peer, addresses);
    let (reads, writes) = (format!("read, {name}"), format!("write, {name}"));
    compare(&reads, Some(1.00), ROUNDS, PER_ROUND, || read(ours, addresses), || read(peer, addresses));
    compare(&writes, Some(1.00), ROUNDS, PER_ROUND, || write(ours, addresses), || write(peer, addresses));
}

fn read(memory: &impl GuestMemory, addresses: &[GuestAddress]) {
    for &address in addresses {
        black_box(memory.read_obj::<u64>(black_box(address)).expect("in a region"));
    }
}

fn write(memory: &impl GuestMemory, addresses: &[GuestAddress]) {
    for &address in addresses {
        memory.write_obj(address.0, black_box(address)).expect("in a region");
    }
}

fn flat_view(regions: u64, log: DirtyClients) -> Result<FlatView, MemoryError> {
    let mut tree = RegionTree::new("system", 1 << 64)?;
    for index in 0..regions {
        let ram = tree.ram("ram", RamBlock::anonymous("ram", REGION_BYTES)?)?;
        tree.set_dirty_log(ram, log)?;
        tree.add(tree.root(), index * STRIDE, ram)?;
    }
    FlatView::render(&tree)
}

fn mmap<B: Bitmap + NewBitmap + 'static>(regions: u64) -> GuestMemoryMmap<B> {
    let region = |index: u64| {
        let mapping = MmapRegion::new(REGION_BYTES as usize).expect("memory");
        GuestRegionMmap::new(mapping, GuestAddress(index * STRIDE)).expect("no overflow")
    };
    let regions: Vec<GuestRegionMmap<B>> = (0..regions).map(region).collect();
    assert!(regions.iter().all(|region| region.len() == REGION_BYTES));
    GuestMemoryMmap::from_regions(regions).expect("disjoint")
}

/// Aligned addresses inside regions, from a fixed seed (xorshift).
fn random_addresses(regions: u64) -> impl Iterator<Item = GuestAddress> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        GuestAddress(state % regions * STRIDE + (state >> 32) % (REGION_BYTES / 8) * 8)
    })
    .take(PER_ROUND as usize)
}
