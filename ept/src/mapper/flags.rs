//! Collecting the flags that hardware sets.

use memory_model::{AddrRange, Address};

use super::operation::Span;
use super::{Flush, Mapper};
use crate::error::Error;
use crate::format::Format;
use crate::mappings::{Mapping, mappings};
use crate::phys::{FrameAllocator, PhysMemory};

impl<M: PhysMemory + FrameAllocator> Mapper<'_, M> {
    /// Clears A of each page that shares an address with `range`, and tells which had it, as they were: the pages
    /// used since the last time. Table pointers keep theirs.
    ///
    /// A large page has one flag, so the range reaches over all of it. No flag that a processor sets meanwhile is lost:
    /// it is told now or stays for the next time. Until the flush a processor may use a page without setting A again
    /// (rule A3).
    pub fn clear_accessed<A: Address>(
        &mut self,
        range: AddrRange<A>,
        found: impl FnMut(Mapping),
    ) -> Result<Flush, Error> {
        self.clear(range, accessed(&self.paging.format), found)
    }

    /// Clears D of each page that shares an address with `range`, and tells which had it, as they were: the pages
    /// written since the last time. Otherwise as [`clear_accessed`](Self::clear_accessed); split large pages first
    /// where single 4 KiB pages are to be told apart.
    pub fn clear_dirty<A: Address>(
        &mut self,
        range: AddrRange<A>,
        found: impl FnMut(Mapping),
    ) -> Result<Flush, Error> {
        self.clear(range, dirty(&self.paging.format), found)
    }

    fn clear<A: Address>(
        &mut self,
        range: AddrRange<A>,
        flag: u64,
        mut found: impl FnMut(Mapping),
    ) -> Result<Flush, Error> {
        Span::of(&self.paging.format, range)?;
        if flag == 0 {
            return Err(Error::NoFlags);
        }
        let mut flush = Flush::NOTHING;
        for mut page in mappings(self.memory, &self.paging).within(range) {
            let at = page.step.entry_address();
            while page.step.entry & flag != 0 {
                if self.memory.compare_exchange(at, page.step.entry, page.step.entry & !flag)? {
                    flush = flush.and(Flush::between(page.address, page.address + (page.size.bytes() - 1)));
                    found(page);
                    break;
                }
                page.step.entry = self.memory.read_entry(at)?;
            }
        }
        Ok(flush)
    }
}

/// A, if hardware sets it.
pub(super) fn accessed(format: &Format) -> u64 {
    format.marked(0, true, false)
}

/// D of a leaf, if hardware sets it.
pub(super) fn dirty(format: &Format) -> u64 {
    format.marked(0, true, true) & !accessed(format)
}
