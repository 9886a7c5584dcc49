//! The view as a whole: look-up and iteration.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::chunk::{self, Chunk};
use super::index::SplitIndex;
use super::{Diff, FlatRange, render};
use crate::{AddrRange, Gpa, Hva, MemoryError, RegionId, RegionTree};

/// An immutable snapshot of what the guest sees: sorted, disjoint, maximally merged (rules R16, R19).
///
/// Views of one address space share what did not change from one to the next.
#[derive(Clone, Debug, Default)]
pub struct FlatView {
    /// Of the first address of each chunk; of each range, where there is but one chunk.
    index: SplitIndex,
    pub(super) chunks: Vec<Arc<Chunk>>,
    len: usize,
}

impl FlatView {
    /// Renders a tree as seen from its own root.
    pub fn render(tree: &RegionTree) -> Result<Self, MemoryError> {
        Self::render_from(tree, tree.root())
    }

    /// Renders a tree as seen from any of its regions; where that region is placed does not matter.
    pub fn render_from(tree: &RegionTree, root: RegionId) -> Result<Self, MemoryError> {
        let everything =
            AddrRange::inclusive(Gpa(0), Gpa(u64::MAX)).expect("0 is not above the last address");
        let mut chunks = Vec::new();
        chunk::pack(render::render(tree, root, &[everything])?, &mut chunks);
        Ok(Self::of(chunks))
    }

    pub(super) fn of(chunks: Vec<Arc<Chunk>>) -> Self {
        let starts: Vec<u64> = match &chunks[..] {
            [only] => only.starts().collect(),
            _ => chunks.iter().map(|chunk| chunk.first().0).collect(),
        };
        let index = SplitIndex::of(&starts);
        let len = chunks.iter().map(|chunk| chunk.ranges.len()).sum();
        Self { index, chunks, len }
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = &FlatRange> + Clone {
        self.chunks.iter().flat_map(|chunk| &chunk.ranges)
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the guest sees nothing at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The range that holds `gpa`.
    #[inline]
    pub fn find(&self, gpa: Gpa) -> Option<&FlatRange> {
        match &self.chunks[..] {
            [only] => only.find_at(self.index.position(gpa.0), gpa),
            _ => self.find_in_chunks(gpa),
        }
    }

    fn find_in_chunks(&self, gpa: Gpa) -> Option<&FlatRange> {
        self.chunks.get(self.index.position(gpa.0))?.find(gpa)
    }

    /// The ranges that share an address with `window`, ascending, each whole.
    pub fn overlapping(&self, window: AddrRange<Gpa>) -> impl Iterator<Item = &FlatRange> {
        let lowest = self.chunks.first().map_or(window.first(), |chunk| chunk.first().max(window.first()));
        let first = if self.chunks.len() > 1 { self.index.position(lowest.0) } else { 0 };
        let chunks = self.chunks.iter().skip(first);
        chunks
            .flat_map(|chunk| &chunk.ranges)
            .skip_while(move |range| range.range.last() < window.first())
            .take_while(move |range| range.range.first() <= window.last())
    }

    /// Where this process sees the byte at `gpa`; `None` where no RAM is.
    pub fn hva(&self, gpa: Gpa) -> Option<Hva> {
        self.find(gpa)?.hva(gpa)
    }

    /// Whether both show the same everywhere, to the same loggers.
    pub fn same_as(&self, other: &Self) -> bool {
        self.len == other.len && Diff::between(self, other).is_empty()
    }
}

impl fmt::Display for FlatView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ranges().try_for_each(|range| writeln!(f, "  {range}"))
    }
}
