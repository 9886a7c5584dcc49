//! Giving a block its pages before the guest asks for them, in parallel, and taking pages back.

use core::num::NonZeroUsize;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;
use std::thread;

use rustix::io::Errno;

use super::RamBlock;
use super::create::refusal;
use super::mapping::Mapping;
use crate::MemoryError;

/// What a thread populates at a time, unless a page is larger: short enough for a progress bar.
const PIECE: u64 = 16 << 20;

impl RamBlock {
    /// Allocates every page of the block, on `threads` threads; what the pages hold stays. `progress` hears
    /// now and then, on any of the threads, how many bytes of how many are done.
    pub fn preallocate(
        &self,
        threads: NonZeroUsize,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(), MemoryError> {
        let mapping = self.mapped()?;
        let (size, piece) = (self.size(), PIECE.max(self.page_size().bytes()));
        let (next, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let failed = Mutex::new(None);
        let work = || {
            loop {
                let start = next.fetch_add(piece, Ordering::Relaxed);
                if start >= size {
                    return;
                }
                let end = size.min(start.saturating_add(piece));
                if let Err(error) = populate(mapping, start as usize..end as usize) {
                    next.store(size, Ordering::Relaxed);
                    *failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
                    return;
                }
                let before = done.fetch_add(end - start, Ordering::Relaxed);
                progress(before + end - start, size);
            }
        };
        thread::scope(|scope| {
            // A thread that the system does not give is no loss: this one does the work.
            let helpers = (1..threads.get()).map(|_| thread::Builder::new().spawn_scoped(scope, work));
            helpers.for_each(drop);
            work();
        });
        match failed.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            None => Ok(()),
            Some(error) => Err(refusal(self.name(), size, self.page_size(), "preallocating")(error)),
        }
    }

    /// Gives the pages of `part` (whole pages of the block, as offsets) back to the host, as QEMU's
    /// `ram_block_discard_range`. They read as zero afterwards; a private mapping of a file shows the file's
    /// bytes again.
    ///
    /// Those who must know are told by [`RamDiscardManager::discard`](crate::RamDiscardManager::discard).
    pub fn discard(&self, part: Range<u64>) -> Result<(), MemoryError> {
        let mapping = self.mapped()?;
        self.check_units(&part, self.page_size().bytes())?;
        mapping.release(part.start as usize..part.end as usize).map_err(refusal(
            self.name(),
            self.size(),
            self.page_size(),
            "discarding pages",
        ))
    }

    /// Whether `part` is whole units inside the block.
    pub(super) fn check_units(&self, part: &Range<u64>, unit: u64) -> Result<(), MemoryError> {
        let whole = part.start.is_multiple_of(unit) && part.end.is_multiple_of(unit);
        if whole && part.start <= part.end && part.end <= self.max_size() {
            return Ok(());
        }
        let block = self.name().as_ref().into();
        Err(MemoryError::DiscardRange { block, start: part.start, end: part.end, unit })
    }
}

fn populate(mapping: &Mapping, part: Range<usize>) -> rustix::io::Result<()> {
    match mapping.populate(part.clone()) {
        // A kernel older than the advice.
        Err(Errno::INVAL) => {
            mapping.touch(part);
            Ok(())
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;

    /// What kernels without the advice get.
    #[test]
    fn touching_allocates_pages_and_changes_nothing() {
        let block = RamBlock::anonymous("ram", 0x5000).unwrap();
        block.write(0x2000, &[3]).unwrap();
        block.mapped().unwrap().touch(0x1000..0x4000);
        let mut entries = [0; 5 * 8];
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        pagemap.read_exact_at(&mut entries, block.hva().0 / 0x1000 * 8).unwrap();
        let present: Vec<bool> = entries.chunks(8).map(|entry| entry[7] & 0x80 != 0).collect();
        assert_eq!(present, [false, true, true, true, false]);
        assert_eq!(block.load_u64(0x2000).unwrap(), 3);
    }
}
