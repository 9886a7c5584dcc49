//! vm-memory's traits on the flat view, so that linux-loader and virtio crates work on it unchanged.
//!
//! There are two ways in:
//! - A [`FlatView`] is the VMM's own way, as QEMU's `address_space_write_rom`: it writes ROM as well as RAM
//!   (rule R6), because a loader has to fill it.
//! - A [`DmaView`] is a device's way: it reads ROM, and writing it is an error that changes nothing.
//!
//! Both show memory only, and only memory that may be copied: RAM, ROM, and a ROM device while its reads are
//! direct. RAM devices (rule R8) and all other regions are holes here; the access functions of the view
//! reach those. A write through either way sets the dirty bits of those who log the range.

mod bitmap;
mod dma;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{Error, Result};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestMemoryRegionBytes, MemoryRegionAddress,
    VolatileSlice,
};

pub use bitmap::DirtySlice;
pub use dma::DmaView;

use crate::{FlatRange, FlatView, Gpa, RamBlock, RegionKind};

impl GuestMemoryBackend for FlatView {
    type R = FlatRange;

    #[inline]
    fn find_region(&self, addr: GuestAddress) -> Option<&FlatRange> {
        self.find(Gpa(addr.0)).filter(|range| copyable(range).is_some())
    }

    // Inlined, the look-up would keep vm-memory's iterators from being inlined, which costs far more.
    #[inline(never)]
    fn to_region_addr(&self, addr: GuestAddress) -> Option<(&FlatRange, MemoryRegionAddress)> {
        let range = self.find_region(addr)?;
        Some((range, MemoryRegionAddress(addr.0 - range.range.first().0)))
    }

    fn iter(&self) -> impl Iterator<Item = &FlatRange> {
        self.ranges().filter(|range| copyable(range).is_some())
    }

    fn last_addr(&self) -> GuestAddress {
        let last = self.ranges().rfind(|range| copyable(range).is_some());
        last.map_or(GuestAddress(0), GuestMemoryRegion::last_addr)
    }
}

impl GuestMemoryRegion for FlatRange {
    type B = Self;

    #[inline]
    fn len(&self) -> u64 {
        // A RAM block is at most 2^64 - 4096 bytes long.
        self.range.bytes() as u64
    }

    #[inline]
    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.range.first().0)
    }

    fn bitmap(&self) -> DirtySlice<'_> {
        DirtySlice::new(self, 0)
    }

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        Ok(self.get_slice(addr, 1)?.ptr_guard_mut().as_ptr())
    }

    #[inline]
    fn get_slice(&self, addr: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_, BS<'_, Self>>> {
        let inside = addr.0.checked_add(count as u64).is_some_and(|end| end <= self.len());
        let block = if inside { copyable(self) } else { None };
        let note = DirtySlice::new(self, addr.0);
        match block.and_then(|block| block.noting_slice(self.offset + addr.0, count, note)) {
            Some(slice) => Ok(slice),
            None => Err(outside(self, addr)),
        }
    }
}

impl GuestMemoryRegionBytes for FlatRange {}

#[cold]
fn outside(range: &FlatRange, addr: MemoryRegionAddress) -> Error {
    Error::InvalidGuestAddress(GuestAddress(range.range.first().0.wrapping_add(addr.0)))
}

/// The block behind a range whose bytes may be copied by whatever width.
#[inline]
fn copyable(range: &FlatRange) -> Option<&RamBlock> {
    match &range.kind {
        RegionKind::Ram(block) => Some(block),
        RegionKind::RomDevice { block, .. } if range.romd => Some(block),
        _ => None,
    }
}
