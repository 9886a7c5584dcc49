//! A set of offsets, as sorted parts that do not touch.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;

/// Parts by their start, each with its end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts(BTreeMap<u64, u64>);

impl Parts {
    pub(super) fn whole(part: Range<u64>) -> Self {
        let mut parts = Self::default();
        parts.insert(part);
        parts
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    pub(super) fn insert(&mut self, part: Range<u64>) {
        if part.is_empty() {
            return;
        }
        let (mut start, mut end) = (part.start, part.end);
        // All that overlap or touch become one.
        while let Some((&from, &to)) = self.0.range(..=end).next_back().filter(|&(_, &to)| to >= start) {
            self.0.remove(&from);
            (start, end) = (start.min(from), end.max(to));
        }
        self.0.insert(start, end);
    }

    pub(super) fn remove(&mut self, part: Range<u64>) {
        if part.is_empty() {
            return;
        }
        while let Some((&from, &to)) =
            self.0.range(..part.end).next_back().filter(|&(_, &to)| to > part.start)
        {
            self.0.remove(&from);
            if to > part.end {
                self.0.insert(part.end, to);
            }
            if from < part.start {
                self.0.insert(from, part.start);
            }
        }
    }

    pub(super) fn contains(&self, part: &Range<u64>) -> bool {
        part.is_empty() || self.0.range(..=part.start).next_back().is_some_and(|(_, &to)| to >= part.end)
    }

    pub(super) fn intersection(&self, other: &Self) -> Self {
        let mut common = Self::default();
        self.iter().for_each(|part| other.within(&part).into_iter().for_each(|part| common.insert(part)));
        common
    }

    /// What is in `self` and not in `other`.
    pub(super) fn difference(&self, other: &Self) -> Self {
        let mut left = self.clone();
        other.iter().for_each(|part| left.remove(part));
        left
    }

    /// The parts of it inside `window`, ascending.
    pub(super) fn within(&self, window: &Range<u64>) -> Vec<Range<u64>> {
        if window.is_empty() {
            return Vec::new();
        }
        let before = self.0.range(..window.start).next_back();
        let parts = before.into_iter().chain(self.0.range(window.clone()));
        parts
            .map(|(&start, &end)| start.max(window.start)..end.min(window.end))
            .filter(|part| !part.is_empty())
            .collect()
    }
}
