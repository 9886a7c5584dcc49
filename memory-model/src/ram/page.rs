//! One page of a block, kept at hand: what a processor's translation cache remembers.
#![expect(unsafe_code, reason = "guest memory is reached through its address")]

use alloc::sync::Arc;
use core::fmt;
use core::ptr::NonNull;

use super::RamBlock;
use crate::{Hva, MemoryError, PageSize};

/// A page of 4 KiB inside a block. It keeps the block mapped, and reaches its bytes without looking anything up.
///
/// The guest, a device or another process may change the bytes at any time: each access is one load or store of the
/// host, whole if it is aligned. A page that the block gives up by shrinking stays mapped, and is zero.
#[derive(Clone)]
pub struct RamPage {
    start: NonNull<u8>,
    block: Arc<RamBlock>,
}

// SAFETY: as the mapping itself: it belongs to the process, and its bytes are reached by volatile accesses alone.
unsafe impl Send for RamPage {}
// SAFETY: as above.
unsafe impl Sync for RamPage {}

/// An integer in memory: 1, 2, 4 or 8 bytes, little endian.
pub trait Word: Copy + sealed::Sealed {
    /// Bytes.
    const BYTES: usize = size_of::<Self>();
}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
}

/// So that a volatile access may be at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<W>(W);

impl RamPage {
    const BYTES: usize = PageSize::Size4K.bytes() as usize;

    /// The page of `block` that holds `offset`.
    pub fn new(block: &Arc<RamBlock>, offset: u64) -> Result<Self, MemoryError> {
        let first = offset & !(Self::BYTES as u64 - 1);
        let bytes = block.slice(first, Self::BYTES as u64)?;
        let start =
            NonNull::new(bytes.ptr_guard_mut().as_ptr()).ok_or_else(|| block.out_of_block(first, 1))?;
        Ok(Self { start, block: block.clone() })
    }

    /// Where the page lies in this process.
    #[inline]
    pub fn hva(&self) -> Hva {
        Hva(self.start.as_ptr() as u64)
    }

    /// The integer at `offset`, which need not be aligned.
    ///
    /// # Panics
    /// If it does not end inside the page.
    #[inline(always)]
    pub fn load<W: Word>(&self, offset: usize) -> W {
        assert!(offset <= Self::BYTES - W::BYTES, "the access ends inside the page");
        // SAFETY: inside the page, which is mapped as long as `self.block` lives; a packed struct is aligned anywhere.
        unsafe { self.start.add(offset).cast::<Unaligned<W>>().read_volatile() }.0
    }

    /// Puts an integer at `offset`, which need not be aligned. Nobody's dirty bits are set.
    ///
    /// # Panics
    /// If it does not end inside the page.
    #[inline(always)]
    pub fn store<W: Word>(&self, offset: usize, value: W) {
        assert!(offset <= Self::BYTES - W::BYTES, "the access ends inside the page");
        // SAFETY: as in `load`.
        unsafe { self.start.add(offset).cast::<Unaligned<W>>().write_volatile(Unaligned(value)) }
    }
}

impl fmt::Debug for RamPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamPage({} of {:?})", self.hva(), self.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reaches_the_blocks_bytes_and_no_others() {
        let block = RamBlock::anonymous("ram", 0x2000).unwrap();
        let page = RamPage::new(&block, 0x1ff0).unwrap();
        assert_eq!(page.hva().0, block.hva().0 + 0x1000);
        page.store(0xffd, 0x0102u16);
        page.store(0, u64::MAX);
        assert_eq!(block.load_u64(0x1ff8).unwrap(), 0x0001_0200_0000_0000);
        assert_eq!((page.load::<u8>(0xffe), page.load::<u32>(1)), (1, u32::MAX));
        for outside in [0xff9, usize::MAX] {
            let load = || page.load::<u64>(outside);
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(load)).is_err());
        }
        assert!(RamPage::new(&block, 0x2000).is_err());
        drop(block);
        assert_eq!(page.load::<u64>(0), u64::MAX, "the page keeps its block");
    }
}
