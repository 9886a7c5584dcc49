//! `page_table_multiarch`, which makes its tables itself.

use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use memory_addr::{PhysAddr, VirtAddr};
use page_table_multiarch::x86_64::X64PageTable;
use page_table_multiarch::{MappingFlags, PagingHandler};

use crate::ram::{FRAME, Ram};

/// All rights.
pub const FLAGS: MappingFlags =
    MappingFlags::all().difference(MappingFlags::DEVICE).difference(MappingFlags::UNCACHED);

/// Allocates from, and finds its tables in, the [`Ram`] last [lent](Multiarch::lend) to it.
pub struct Multiarch;

static BASE: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static NEXT: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);

impl Multiarch {
    /// Lends `ram` from the physical address `from` on.
    pub fn lend(ram: &Ram, from: u64) {
        BASE.store(ram.cells.as_ptr().cast_mut().cast(), Ordering::Relaxed);
        NEXT.store(from, Ordering::Relaxed);
        END.store(ram.bytes, Ordering::Relaxed);
    }

    /// A table that maps `bytes` from `address` on to physical addresses from `frame` on, in 4 KiB pages.
    pub fn map(address: u64, frame: u64, bytes: u64) -> X64PageTable<Self> {
        let mut table = X64PageTable::<Self>::try_new().expect("frames are left");
        let target = |at: VirtAddr| PhysAddr::from(at.as_usize() - address as usize + frame as usize);
        let start = VirtAddr::from(address as usize);
        table.cursor().map_region(start, target, bytes as usize, FLAGS, false).expect("nothing is mapped");
        table
    }
}

impl PagingHandler for Multiarch {
    fn alloc_frames(count: usize, _: usize) -> Option<PhysAddr> {
        let bytes = count as u64 * FRAME;
        let frame = NEXT.load(Ordering::Relaxed);
        if frame + bytes > END.load(Ordering::Relaxed) {
            return None;
        }
        NEXT.store(frame + bytes, Ordering::Relaxed);
        Some(PhysAddr::from(frame as usize))
    }

    fn dealloc_frames(_: PhysAddr, _: usize) {}

    #[inline]
    fn phys_to_virt(address: PhysAddr) -> VirtAddr {
        VirtAddr::from(BASE.load(Ordering::Relaxed) as usize + address.as_usize())
    }
}
