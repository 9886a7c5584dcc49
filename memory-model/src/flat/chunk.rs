//! A run of ranges that views share: a commit copies the runs it changes, and only points to the others.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::FlatRange;
use super::index::Index;
use crate::Gpa;

/// The most ranges of one chunk.
pub(super) const CHUNK: usize = 64;

/// Up to [`CHUNK`] ranges, ascending, never none.
#[derive(Debug)]
pub(super) struct Chunk {
    index: Index,
    pub(super) ranges: Vec<FlatRange>,
}

impl Chunk {
    fn new(ranges: Vec<FlatRange>) -> Self {
        let starts: Vec<u64> = ranges.iter().map(|range| range.range.first().0).collect();
        Self { index: Index::of(&starts), ranges }
    }

    /// The first address of each range.
    pub(super) fn starts(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().map(|range| range.range.first().0)
    }

    /// The range that holds `gpa`.
    #[inline]
    pub(super) fn find(&self, gpa: Gpa) -> Option<&FlatRange> {
        self.find_at(self.index.position(gpa.0), gpa)
    }

    /// The range with that number, if it holds `gpa`.
    #[inline]
    pub(super) fn find_at(&self, position: usize, gpa: Gpa) -> Option<&FlatRange> {
        self.ranges.get(position).filter(|range| range.range.contains(gpa))
    }

    pub(super) fn first(&self) -> Gpa {
        self.ranges[0].range.first()
    }
}

/// Splits ranges into chunks of about the same length.
pub(super) fn pack(ranges: Vec<FlatRange>, into: &mut Vec<Arc<Chunk>>) {
    let count = ranges.len().div_ceil(CHUNK);
    let mut ranges = ranges.into_iter();
    for left in (1..=count).rev() {
        let length = ranges.len().div_ceil(left);
        into.push(Arc::new(Chunk::new(ranges.by_ref().take(length).collect())));
    }
}
