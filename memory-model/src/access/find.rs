//! Pieces of a view that others keep: the first in a range, and where a translated access ends.

use crate::access::place::{self, Place};
use crate::{Access, AccessError, AddrRange, Bus, FlatRange, FlatView, Gpa, MemTxError};

impl FlatView {
    /// The first range that `wanted` touches, cut to what it touches (QEMU's `memory_region_find`, rule R40).
    ///
    /// It keeps its memory or device alive, but it stands for this view only: later ones may show something
    /// else there.
    pub fn first_in(&self, wanted: AddrRange<Gpa>) -> Option<FlatRange> {
        self.overlapping(wanted).next()?.clip(wanted)
    }
}

impl Bus<'_> {
    /// Where an access of up to `len` bytes (not 0) at `gpa` ends: the memory or device behind all IOMMUs, cut to
    /// what goes there in one piece. Its addresses are those of the view in which the access ends.
    pub fn translate(&self, gpa: Gpa, len: usize, access: Access) -> Result<FlatRange, AccessError> {
        let found = place::locate(self, gpa, len, access, |place, len| match place {
            Place::Region { range, offset, .. } => {
                let first = Gpa(range.range.first().0 + (offset - range.offset));
                let last = Gpa(first.0.saturating_add((len as u64).saturating_sub(1)));
                let wanted = AddrRange::inclusive(first, last).expect("the last is not below the first");
                range.clip(wanted).ok_or(MemTxError::Decode)
            }
            Place::Nothing { .. } => Err(MemTxError::Decode),
            Place::Failed(error) => Err(error),
        });
        found.map_err(|source| AccessError { gpa, source })
    }
}
