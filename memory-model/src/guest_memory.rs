//! vm-memory's traits on the flat view, so that linux-loader and virtio crates work on it unchanged.
//!
//! This is the VMM's own way into guest memory, as QEMU's `address_space_write_rom`: it reaches ROM as well
//! as RAM (rule R6), because a loader has to fill it. Devices do not show up: vm-memory knows only memory.

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{Error, Result};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestMemoryRegionBytes, MemoryRegionAddress,
    VolatileSlice,
};

use crate::{FlatRange, FlatView, Gpa};

impl GuestMemoryBackend for FlatView {
    type R = FlatRange;

    fn find_region(&self, addr: GuestAddress) -> Option<&FlatRange> {
        self.find(Gpa(addr.0)).filter(|range| range.ram().is_some())
    }

    fn iter(&self) -> impl Iterator<Item = &FlatRange> {
        self.ranges().iter().filter(|range| range.ram().is_some())
    }
}

impl GuestMemoryRegion for FlatRange {
    type B = ();

    fn len(&self) -> u64 {
        // A RAM block is at most 2^64 - 4096 bytes long.
        self.range.bytes() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.range.first().0)
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        Ok(self.get_slice(addr, 1)?.ptr_guard_mut().as_ptr())
    }

    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_, BS<'_, ()>>> {
        let outside =
            || Error::InvalidGuestAddress(GuestAddress(self.range.first().0.wrapping_add(offset.0)));
        let end = offset.0.checked_add(count as u64).filter(|&end| end <= self.len()).ok_or_else(outside)?;
        debug_assert!(end <= self.len());
        let block = self.ram().ok_or_else(outside)?;
        block.slice(self.offset + offset.0, count as u64).map_err(|_| outside())
    }
}

impl GuestMemoryRegionBytes for FlatRange {}
