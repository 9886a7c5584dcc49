//! Rendering again only where something can have changed.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::chunk::{self, CHUNK, Chunk};
use super::{FlatRange, FlatView, render};
use crate::{AddrRange, Gpa, MemoryError, RegionId, RegionTree};

impl FlatView {
    /// The view of `root`, if it differs from this one at most inside `windows`: a full render gives the same.
    pub(crate) fn rerender(
        &self,
        tree: &RegionTree,
        root: RegionId,
        windows: Vec<AddrRange<Gpa>>,
    ) -> Result<Self, MemoryError> {
        let windows = join(windows.into_iter().map(|window| self.whole_pieces(window)).collect());
        let pieces = render::render(tree, root, &windows)?;
        let mut splicer =
            Splicer { pieces: pieces.into_iter().peekable(), pending: Vec::new(), chunks: Vec::new() };
        let mut windows = &windows[..];
        for chunk in &self.chunks {
            // Windows that end before the chunk and do not touch it are done with.
            let done = windows.partition_point(|window| window.last().0.saturating_add(1) < chunk.first().0);
            windows = &windows[done..];
            let near = windows.first().map(|window| window.first().0.saturating_sub(1));
            if near.is_some_and(|near| chunk.ranges.iter().any(|range| near <= range.range.last().0)) {
                for range in &chunk.ranges {
                    splicer.keep_outside(range, windows);
                }
            } else {
                splicer.keep(chunk);
            }
        }
        Ok(splicer.finish())
    }

    /// Widens a window by the unmergeable ranges that it cuts or touches: no seam in them could be closed
    /// again (rule R17).
    fn whole_pieces(&self, window: AddrRange<Gpa>) -> AddrRange<Gpa> {
        let (first, last) = (window.first().0, window.last().0);
        let unmergeable = |gpa: u64| self.find(Gpa(gpa)).filter(|range| range.unmergeable);
        let below = [first, first.saturating_sub(1)].into_iter().filter_map(unmergeable);
        let above = [last, last.saturating_add(1)].into_iter().filter_map(unmergeable);
        let first = below.map(|range| range.range.first()).min().unwrap_or(window.first());
        let last = above.map(|range| range.range.last()).max().unwrap_or(window.last());
        AddrRange::inclusive(first.min(window.first()), last.max(window.last()))
            .expect("the ends only move outwards")
    }
}

/// Sorts windows and joins those that overlap or touch.
fn join(mut windows: Vec<AddrRange<Gpa>>) -> Vec<AddrRange<Gpa>> {
    windows.sort_unstable();
    let mut joined: Vec<AddrRange<Gpa>> = Vec::new();
    for window in windows {
        match joined.last_mut() {
            Some(last) if last.overlaps(window) || last.touches(window) => {
                *last = AddrRange::inclusive(last.first(), last.last().max(window.last()))
                    .expect("the end only moves up");
            }
            _ => joined.push(window),
        }
    }
    joined
}

/// Puts old chunks, parts of old ranges and new pieces together, in ascending order.
struct Splicer<I: Iterator<Item = FlatRange>> {
    /// New pieces that are not yet in.
    pieces: core::iter::Peekable<I>,
    /// Ranges that are not yet in a chunk.
    pending: Vec<FlatRange>,
    chunks: Vec<Arc<Chunk>>,
}

impl<I: Iterator<Item = FlatRange>> Splicer<I> {
    /// Keeps a chunk that no window touches.
    fn keep(&mut self, chunk: &Arc<Chunk>) {
        self.add_pieces_below(chunk.first());
        self.flush();
        self.chunks.push(chunk.clone());
    }

    /// Keeps what lies outside the windows.
    fn keep_outside(&mut self, range: &FlatRange, windows: &[AddrRange<Gpa>]) {
        let before = windows.partition_point(|window| window.last() < range.range.first());
        let mut rest = Some(range.range);
        for window in &windows[before..] {
            let Some(whole) = rest.filter(|rest| rest.overlaps(*window)) else { break };
            if let Some(last) = window.first().0.checked_sub(1) {
                self.keep_part(range, AddrRange::inclusive(whole.first(), Gpa(last)));
            }
            rest = window.last().checked_add(1).and_then(|next| whole.from_addr(next));
        }
        self.keep_part(range, rest);
    }

    fn keep_part(&mut self, range: &FlatRange, part: Option<AddrRange<Gpa>>) {
        if let Some(kept) = part.and_then(|part| range.clip(part)) {
            self.add_pieces_below(kept.range.first());
            render::append(&mut self.pending, kept);
        }
    }

    fn add_pieces_below(&mut self, limit: Gpa) {
        while let Some(piece) = self.pieces.next_if(|piece| piece.range.first() < limit) {
            render::append(&mut self.pending, piece);
        }
    }

    /// Puts the pending ranges into chunks; too few for one of their own join the chunk before.
    fn flush(&mut self) {
        let mut ranges = core::mem::take(&mut self.pending);
        if (1..CHUNK / 4).contains(&ranges.len())
            && let Some(before) = self.chunks.pop()
        {
            ranges.splice(..0, before.ranges.iter().cloned());
        }
        chunk::pack(ranges, &mut self.chunks);
    }

    fn finish(mut self) -> FlatView {
        for piece in self.pieces.by_ref() {
            render::append(&mut self.pending, piece);
        }
        self.flush();
        FlatView::of(self.chunks)
    }
}
