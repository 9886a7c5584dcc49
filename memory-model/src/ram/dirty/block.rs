//! The dirty bits of one RAM block, for each client.

use core::ops::Range;
use std::sync::OnceLock;

use super::{DirtyBitmap, DirtyClients, DirtySnapshot};

/// A bitmap for each client, made when its first page is marked: most blocks are never logged.
#[derive(Debug)]
pub(in crate::ram) struct DirtyMemory {
    bytes: u64,
    clients: [OnceLock<DirtyBitmap>; DirtyClients::all().bits().count_ones() as usize],
}

impl DirtyMemory {
    pub(in crate::ram) fn new(bytes: u64) -> Self {
        Self { bytes, clients: Default::default() }
    }

    pub(in crate::ram) fn mark(&self, offset: u64, len: u64, clients: DirtyClients) {
        for bitmap in self.of(clients) {
            bitmap.get_or_init(|| DirtyBitmap::new(self.bytes)).mark(offset, len);
        }
    }

    pub(in crate::ram) fn is_dirty(&self, offset: u64, len: u64, clients: DirtyClients) -> bool {
        self.of(clients).filter_map(OnceLock::get).any(|bitmap| bitmap.is_dirty(offset, len))
    }

    pub(in crate::ram) fn snapshot_and_clear(
        &self,
        range: Range<u64>,
        client: DirtyClients,
    ) -> DirtySnapshot {
        let bitmaps = self.of(client).filter_map(OnceLock::get);
        bitmaps
            .map(|bitmap| bitmap.snapshot_and_clear(range.clone()))
            .fold(Default::default(), DirtySnapshot::union)
    }

    fn of(&self, clients: DirtyClients) -> impl Iterator<Item = &OnceLock<DirtyBitmap>> {
        let mut left = clients.bits();
        core::iter::from_fn(move || {
            let bitmap = self.clients.get(left.trailing_zeros() as usize)?;
            left &= left - 1;
            Some(bitmap)
        })
    }
}
