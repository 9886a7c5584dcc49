//! The dirty bits behind a range as vm-memory's bitmap.

use core::fmt;

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};

use crate::FlatRange;

/// The dirty bits behind a part of a range, for those clients that log the range.
#[derive(Clone, Copy)]
pub struct DirtySlice<'a> {
    range: &'a FlatRange,
    /// Where in the range it begins.
    start: u64,
}

impl<'a> DirtySlice<'a> {
    #[inline]
    pub(super) fn new(range: &'a FlatRange, start: u64) -> Self {
        Self { range, start }
    }

    /// The offset in the block.
    #[inline]
    fn offset(&self, offset: usize) -> u64 {
        self.range.offset.wrapping_add(self.start).wrapping_add(offset as u64)
    }
}

impl WithBitmapSlice<'_> for DirtySlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtySlice<'_> {}

impl Bitmap for DirtySlice<'_> {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        let clients = self.range.dirty_mask;
        if !clients.is_empty()
            && let Some(block) = self.range.ram()
        {
            block.mark_dirty(self.offset(offset), len as u64, clients);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let (offset, clients) = (self.offset(offset), self.range.dirty_mask);
        self.range.ram().is_some_and(|block| block.is_dirty(offset, 1, clients))
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> Self {
        Self { range: self.range, start: self.start.wrapping_add(offset as u64) }
    }
}

impl fmt::Debug for DirtySlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirtySlice({} from {:#x} on)", self.range, self.start)
    }
}

impl<'a> WithBitmapSlice<'a> for FlatRange {
    type S = DirtySlice<'a>;
}

impl Bitmap for FlatRange {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice_at(0).mark_dirty(offset, len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.slice_at(0).dirty_at(offset)
    }

    fn slice_at(&self, offset: usize) -> DirtySlice<'_> {
        DirtySlice::new(self, offset as u64)
    }
}
