//! What else may happen to a block's pages while a guest uses them: other rights, other frames.
#![expect(unsafe_code, reason = "mprotect and mremap take addresses")]

use core::ffi::c_void;
use core::ops::Range;

use rustix::io::{Errno, Result};
use rustix::mm::{
    MapFlags, MprotectFlags, MremapFlags, ProtFlags, mmap_anonymous, mprotect, mremap_fixed, munmap,
};

use super::RamBlock;
use super::create::refusal;
use super::mapping::{Mapping, Source};
use crate::MemoryError;

/// How a process may use its pages (`mprotect`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// Read and write, as all pages are at first.
    ReadWrite,
    /// Read alone.
    ReadOnly,
    /// Not at all.
    None,
}

impl RamBlock {
    /// Says how this process may use the pages of `part` (whole pages, as offsets) from now on. A guest that does what
    /// is not allowed leaves with a memory fault. Whoever in this process does it, through this block too, is ended by
    /// the kernel (SIGSEGV).
    pub fn protect(&self, part: Range<u64>, protection: Protection) -> core::result::Result<(), MemoryError> {
        let (mapping, part) = self.pages_of(part)?;
        mapping.protect(part, protection).map_err(self.refused("changing the protection"))
    }

    /// Gives the pages of `part` (whole pages, as offsets) other frames and keeps their bytes, as the kernel does when it
    /// compacts memory. What somebody writes meanwhile may be lost. Private anonymous memory alone can do that.
    pub fn migrate(&self, part: Range<u64>) -> core::result::Result<(), MemoryError> {
        let (mapping, part) = self.pages_of(part)?;
        mapping.migrate(part).map_err(self.refused("moving to other frames"))
    }

    fn pages_of(&self, part: Range<u64>) -> core::result::Result<(&Mapping, Range<usize>), MemoryError> {
        let mapping = self.mapped()?;
        self.check_units(&part, self.page_size().bytes())?;
        Ok((mapping, part.start as usize..part.end as usize))
    }

    fn refused(&self, action: &'static str) -> impl Fn(Errno) -> MemoryError + use<> {
        refusal(self.name(), self.size(), self.page_size(), action)
    }
}

impl Mapping {
    fn protect(&self, part: Range<usize>, protection: Protection) -> Result<()> {
        let rights = match protection {
            Protection::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
            Protection::ReadOnly => MprotectFlags::READ,
            Protection::None => MprotectFlags::empty(),
        };
        // SAFETY: the range is inside this mapping, to whose bytes nobody holds a reference.
        unsafe { mprotect(self.at(part.start), part.len(), rights) }
    }

    fn migrate(&self, part: Range<usize>) -> Result<()> {
        if !matches!(self.source, Source::Anonymous) || self.shared {
            return Err(Errno::OPNOTSUPP);
        }
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no other.
        let copy = unsafe { mmap_anonymous(core::ptr::null_mut(), part.len(), rights, flags)? };
        // SAFETY: both ranges are mapped and disjoint, and nobody knows of the copy.
        unsafe { core::ptr::copy_nonoverlapping(self.at(part.start).cast::<u8>(), copy.cast(), part.len()) };
        // SAFETY: the copy takes the place of a part of this mapping, to whose bytes nobody holds a reference.
        let moved =
            unsafe { mremap_fixed(copy, part.len(), part.len(), MremapFlags::MAYMOVE, self.at(part.start)) };
        moved.map(drop).inspect_err(|_| {
            // SAFETY: the copy is still where it was, and nobody's. If it cannot be unmapped it is lost, no more.
            let _ = unsafe { munmap(copy, part.len()) };
        })
    }

    fn at(&self, offset: usize) -> *mut c_void {
        self.start.wrapping_byte_add(offset)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::read_to_string;

    use super::*;

    #[test]
    fn pages_that_migrate_keep_their_bytes() {
        let block = RamBlock::anonymous("ram", 0x4000).unwrap();
        block.write(0x1ff8, &[7; 16]).unwrap();
        block.migrate(0x1000..0x3000).unwrap();
        let mut bytes = [0; 16];
        block.read(0x1ff8, &mut bytes).unwrap();
        assert_eq!(bytes, [7; 16]);
        // They are this block's pages still: given back with the others.
        block.discard(0..0x4000).unwrap();
        block.read(0x1ff8, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 16]);
    }

    #[test]
    fn shared_memory_stays_where_it_is() {
        let error = RamBlock::memfd("file", 0x1000).unwrap().migrate(0..0x1000).unwrap_err();
        assert!(error.to_string().contains("moving to other frames"), "{error}");
        assert!(RamBlock::anonymous("ram", 0x2000).unwrap().migrate(0x800..0x1000).is_err());
    }

    #[test]
    fn the_kernel_knows_the_protection() {
        let block = RamBlock::anonymous("ram", 0x3000).unwrap();
        let rights = |page: u64| {
            let start = format!("{:x}-", block.hva().0 + page * 0x1000);
            let maps = read_to_string("/proc/self/maps").unwrap();
            let line = maps.lines().find(|line| line.starts_with(&start));
            line.map(|line| line.split(' ').nth(1).unwrap().to_owned())
        };
        block.protect(0x1000..0x2000, Protection::ReadOnly).unwrap();
        assert_eq!(rights(1).as_deref(), Some("r--p"));
        block.protect(0x1000..0x2000, Protection::None).unwrap();
        assert_eq!(rights(1).as_deref(), Some("---p"));
        assert_eq!(rights(2).as_deref(), Some("rw-p"));
        block.protect(0x1000..0x2000, Protection::ReadWrite).unwrap();
        assert_eq!(rights(1), None, "one mapping again");
    }
}
