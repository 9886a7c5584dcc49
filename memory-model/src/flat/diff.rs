//! How one view becomes another.

use alloc::vec::Vec;

use super::{FlatRange, FlatView};

/// What tells two views apart, both parts ascending by address. Chunks that they share are passed over.
#[derive(Default)]
pub(crate) struct Diff<'a> {
    /// Ranges of the old view that the new one lacks.
    pub(crate) gone: Vec<&'a FlatRange>,
    /// Ranges of the new view that the old one lacks, or whose loggers differ.
    pub(crate) news: Vec<News<'a>>,
}

/// A range of the new view.
#[derive(Clone, Copy)]
pub(crate) enum News<'a> {
    /// It was not there.
    Added(&'a FlatRange),
    /// It was, with other loggers.
    Relogged { old: &'a FlatRange, new: &'a FlatRange },
}

impl<'a> News<'a> {
    /// The range as it now is.
    pub(crate) fn range(self) -> &'a FlatRange {
        match self {
            Self::Added(new) | Self::Relogged { new, .. } => new,
        }
    }
}

impl<'a> Diff<'a> {
    pub(crate) fn between(old: &'a FlatView, new: &'a FlatView) -> Self {
        let mut diff = Self::default();
        let (mut left, mut right) = (Cursor::of(old), Cursor::of(new));
        loop {
            left.skip_shared(&mut right);
            let (before, after) = (left.peek(), right.peek());
            let order = match (before, after) {
                (None, None) => return diff,
                (Some(_), None) => core::cmp::Ordering::Less,
                (None, Some(_)) => core::cmp::Ordering::Greater,
                (Some(before), Some(after)) => before.range.first().cmp(&after.range.first()),
            };
            let old = before.filter(|_| order.is_le());
            let new = after.filter(|_| order.is_ge());
            if old.is_some() {
                left.advance();
            }
            if new.is_some() {
                right.advance();
            }
            match (old, new) {
                (Some(old), Some(new)) if old.same_as(new) => {
                    if old.dirty_mask != new.dirty_mask {
                        diff.news.push(News::Relogged { old, new });
                    }
                }
                _ => {
                    diff.gone.extend(old);
                    diff.news.extend(new.map(News::Added));
                }
            }
        }
    }

    /// Whether the two show the same everywhere, to the same loggers.
    pub(crate) fn is_empty(&self) -> bool {
        self.gone.is_empty() && self.news.is_empty()
    }
}

/// A place in a view, between two ranges.
struct Cursor<'a> {
    view: &'a FlatView,
    chunk: usize,
    index: usize,
}

impl<'a> Cursor<'a> {
    fn of(view: &'a FlatView) -> Self {
        Self { view, chunk: 0, index: 0 }
    }

    fn peek(&self) -> Option<&'a FlatRange> {
        self.view.chunks.get(self.chunk)?.ranges.get(self.index)
    }

    fn advance(&mut self) {
        self.index += 1;
        if self.index == self.view.chunks[self.chunk].ranges.len() {
            self.chunk += 1;
            self.index = 0;
        }
    }

    /// Moves both behind the chunks that they share from here on.
    fn skip_shared(&mut self, other: &mut Self) {
        if self.index != 0 || other.index != 0 {
            return;
        }
        let (ours, theirs) = (&self.view.chunks[self.chunk..], &other.view.chunks[other.chunk..]);
        let shared = ours.iter().zip(theirs).take_while(|(one, two)| alloc::sync::Arc::ptr_eq(one, two));
        let shared = shared.count();
        self.chunk += shared;
        other.chunk += shared;
    }
}
