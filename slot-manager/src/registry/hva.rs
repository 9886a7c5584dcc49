//! Host ranges, which may overlap, by what they hold.

use memory_model::{AddrRange, Hva};

use super::Place;
use super::sorted::Sorted;

/// Ranges are sorted by length class, the number of bits of the length. Inside a class no range is longer than
/// twice another, so those that reach an address start within a short stretch before it. (The kernel uses an
/// interval tree.)
#[derive(Clone, Debug, Default)]
pub(super) struct HvaIndex {
    /// By ascending class; there are few.
    classes: Vec<(u32, Sorted)>,
}

impl HvaIndex {
    pub(super) fn insert(&mut self, range: AddrRange<Hva>, place: Place) {
        let class = class(range);
        let at = self.classes.partition_point(|(other, _)| *other < class);
        if self.classes.get(at).is_none_or(|(other, _)| *other != class) {
            self.classes.insert(at, (class, Sorted::default()));
        }
        self.classes[at].1.insert(range.first().0, range.last().0, place);
    }

    pub(super) fn remove(&mut self, range: AddrRange<Hva>, place: Place) {
        let class = class(range);
        self.classes.retain_mut(|(other, ranges)| {
            if *other == class {
                ranges.remove(range.first().0, place);
            }
            ranges.len() != 0
        });
    }

    pub(super) fn relocate(&mut self, range: AddrRange<Hva>, from: Place, to: Place) {
        let class = class(range);
        let of_class = self.classes.iter_mut().find(|(other, _)| *other == class);
        if let Some((_, ranges)) = of_class {
            ranges.relocate(range.first().0, from, to);
        }
    }

    /// All that share a byte with `range`.
    #[inline]
    pub(super) fn overlapping(&self, range: AddrRange<Hva>) -> impl Iterator<Item = Place> {
        self.classes.iter().flat_map(move |(class, ranges)| {
            // The longest range of the class is 2^(class + 1) bytes.
            let longest = u64::MAX >> (63 - class);
            let lowest = range.first().0.saturating_sub(longest);
            let until = ranges.count_not_above(range.last().0);
            let near = (0..until).rev().take_while(move |&index| ranges.firsts()[index] >= lowest);
            let entries = near.map(|index| ranges.entries(index)[0]);
            entries.filter(move |entry| entry.last >= range.first().0).map(|entry| entry.place)
        })
    }
}

fn class(range: AddrRange<Hva>) -> u32 {
    (range.last().0 - range.first().0).checked_ilog2().unwrap_or(0)
}
