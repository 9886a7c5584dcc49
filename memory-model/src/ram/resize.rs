//! Blocks that grow and shrink (rule R42), as firmware tables do that turn out larger on the other machine.

use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use std::sync::PoisonError;

use super::{DirtyClients, RamBlock, check_size};
use crate::MemoryError;

/// Hears the old and the new size, in bytes.
pub(super) type Listeners = Vec<Arc<dyn Fn(u64, u64) + Send + Sync>>;

impl RamBlock {
    /// Lets `listener` hear each change of size, as old and new bytes, before it happens.
    pub fn on_resize(&self, listener: impl Fn(u64, u64) + Send + Sync + 'static) {
        self.host.resizes.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(listener));
    }

    /// Changes the size (whole pages, up to [`max_size`](Self::max_size)). The listeners hear first; what is
    /// new is dirty for all clients, what is gone is clean. Bytes stay where they are, those that are out of reach too.
    ///
    /// A region that shows the block keeps its size until [`RegionTree::set_size`](crate::RegionTree::set_size).
    pub fn resize(&self, size: u64) -> Result<(), MemoryError> {
        check_size(self.name(), size, self.page_size())?;
        if size > self.max_size() {
            return Err(MemoryError::BlockFull {
                block: self.name().to_string(),
                size,
                max: self.max_size(),
            });
        }
        let resizes = self.host.resizes.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.size();
        if size == old {
            return Ok(());
        }
        resizes.iter().for_each(|listener| listener(old, size));
        self.size.store(size, Ordering::Release);
        if size > old {
            self.mark_dirty(old, size - old, DirtyClients::all());
        } else {
            self.snapshot_and_clear_dirty(size..old, DirtyClients::all());
        }
        Ok(())
    }
}
