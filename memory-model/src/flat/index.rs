//! Finds the last of many start addresses that is not above an address, without a branch that depends on it.
//!
//! The addresses are cut into buckets of equal length, and for each the last start below it is known. From there
//! a binary search with as many steps as the fullest bucket needs finds the rest: none where starts lie evenly,
//! as those of memory and of BARs mostly do, and never more than one over all of them.
//!
//! - An [`Index`] is one of many, and which of them an address leads to cannot be foretold. So nearly all of them
//!   do the same: exactly one comparison after the bucket.
//! - A [`SplitIndex`] is the only one of its view, so the number of its steps can be foretold, but one far-off
//!   group of starts would spoil the buckets of all. So its buckets have two lengths, one for the starts on either
//!   side of an edge of the fullest bucket.

use alloc::vec::Vec;
use core::hint::select_unpredictable;
use core::ops::Range;

/// An index of the start addresses in one chunk.
#[derive(Debug)]
pub(super) struct Index {
    buckets: Buckets,
    rest: Search,
}

/// An index of start addresses in two groups.
#[derive(Clone, Debug, Default)]
pub(super) struct SplitIndex {
    /// The last address before the upper group's.
    cut: u64,
    groups: [Buckets; 2],
    rest: Search,
}

/// Where the search of an address begins.
#[derive(Clone, Debug, Default)]
struct Buckets {
    /// The first start.
    base: u64,
    /// log2 of a bucket's length.
    shift: u32,
    /// The number of the last start that is not above the first address of each bucket. That of the last bucket
    /// goes for all addresses behind it as well.
    known: Vec<u32>,
}

/// The search of what the buckets leave open.
#[derive(Clone, Debug, Default)]
struct Search {
    /// The length of the first step, a power of two; 0 if there is nothing to search.
    reach: usize,
    /// The address before each start; behind them the last address of all, which no address is above, as far
    /// as a search can reach.
    before: Vec<u64>,
}

impl Index {
    /// Of `starts`, ascending and not none.
    pub(super) fn of(starts: &[u64]) -> Self {
        let (buckets, open) = Buckets::of(starts, 0..starts.len(), 1);
        Self { buckets, rest: Search::of(starts, open.len().saturating_sub(1)) }
    }

    /// The number of the last start that is not above `value`; any number if all are above.
    #[inline]
    pub(super) fn position(&self, value: u64) -> usize {
        let position = self.rest.from(self.buckets.known_at(value), value);
        position + usize::from(self.rest.before[position + 1] < value)
    }
}

impl SplitIndex {
    /// Of `starts`, ascending.
    pub(super) fn of(starts: &[u64]) -> Self {
        let (whole, open) = Buckets::of(starts, 0..starts.len(), 0);
        if open.is_empty() {
            return Self { cut: u64::MAX, groups: [whole, Buckets::default()], rest: Search::of(starts, 0) };
        }
        // At the wider of the gaps before and behind what the fullest bucket leaves open.
        let gap = |&at: &usize| starts.get(at).map_or(0, |start| start - starts[at - 1]);
        let cut = [open.start, open.end].into_iter().max_by_key(gap).expect("one of two");
        let (lower, open) = Buckets::of(starts, 0..cut, 0);
        let (upper, other) = Buckets::of(starts, cut..starts.len(), 0);
        let rest = Search::of(starts, open.len().max(other.len()));
        Self { cut: starts.get(cut).map_or(u64::MAX, |start| start - 1), groups: [lower, upper], rest }
    }

    /// The number of the last start that is not above `value`; any number if all are above.
    #[inline]
    pub(super) fn position(&self, value: u64) -> usize {
        let [lower, upper] = &self.groups;
        let group = select_unpredictable(self.cut < value, upper, lower);
        self.rest.from(group.known_at(value), value)
    }
}

impl Buckets {
    /// For the starts with these numbers; and those numbers that the fullest bucket leaves open. The buckets are
    /// as long as they can be to leave `enough` open at most.
    fn of(all: &[u64], numbers: Range<usize>, enough: usize) -> (Self, Range<usize>) {
        let starts = &all[numbers.clone()];
        let (Some(&base), Some(&last)) = (starts.first(), starts.last()) else { return Default::default() };
        // Two to four buckets for each start; if those leave too much open, up to four times as many.
        let wanted = 4 * starts.len() as u64;
        let widest =
            (0_u32..64).find(|&shift| (last - base) >> shift < wanted).expect("a bucket of 2^63 bytes");
        let candidates =
            (widest.saturating_sub(2)..=widest).rev().map(|shift| (shift, most_open(starts, shift)));
        let (shift, open) = candidates.clone().find(|(_, open)| open.len() <= enough).unwrap_or_else(|| {
            candidates.min_by_key(|(_, open)| open.len()).expect("the widest is one of them")
        });
        let mut known = Vec::with_capacity(((last - base) >> shift) as usize + 1);
        for (number, start) in numbers.clone().zip(starts).skip(1) {
            // The first bucket that does not begin below this start, and with it the next number.
            let bucket = ((start - base - 1) >> shift) + 1;
            known.resize(bucket as usize, number as u32 - 1);
        }
        known.resize(((last - base) >> shift) as usize + 1, numbers.end as u32 - 1);
        (Self { base, shift, known }, numbers.start + open.start..numbers.start + open.end)
    }

    #[inline]
    fn known_at(&self, value: u64) -> usize {
        let bucket = (value.wrapping_sub(self.base) >> self.shift) as usize;
        let last = self.known.len().wrapping_sub(1);
        self.known.get(select_unpredictable(bucket < last, bucket, last)).map_or(0, |&known| known as usize)
    }
}

/// The starts of one bucket that lie above its first address, where they are most.
fn most_open(starts: &[u64], shift: u32) -> Range<usize> {
    let mut most = 0..0;
    let mut next = 0;
    for bucket in starts.chunk_by(|one, other| (one - starts[0]) >> shift == (other - starts[0]) >> shift) {
        let on_edge = (bucket[0] - starts[0]) & ((1 << shift) - 1) == 0;
        let open = next + usize::from(on_edge)..next + bucket.len();
        next = open.end;
        if open.len() > most.len() {
            most = open;
        }
    }
    most
}

impl Search {
    /// For buckets that leave at most `open` starts open.
    fn of(starts: &[u64], open: usize) -> Self {
        let reach = (open + 1).next_power_of_two() / 2;
        let mut before: Vec<u64> = starts.iter().map(|start| start.wrapping_sub(1)).collect();
        before.resize(starts.len() + 2 * reach + 1, u64::MAX);
        Self { reach, before }
    }

    #[inline]
    fn from(&self, known: usize, value: u64) -> usize {
        let (mut position, mut step) = (known, self.reach);
        while step > 0 {
            let probe = position + step;
            position = select_unpredictable(self.before[probe] < value, probe, position);
            step /= 2;
        }
        position
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_a_linear_search_finds() {
        let layouts: [&dyn Fn(u64) -> u64; 5] = [
            &|i| 3 * i,
            &|i| i * i * i,
            &|i| u64::MAX - 5 * (1000 - i),
            &|i| if i < 500 { i } else { i << 50 },
            // Two groups, and the upper one spreads.
            &|i| if i < 5 { 100 * i } else { (1 << 40) + i * i * i },
        ];
        for layout in layouts {
            for count in [1, 2, 3, 9, 64, 65, 1001] {
                let starts: Vec<u64> = (0..count).map(layout).collect();
                let (index, split) = (Index::of(&starts), SplitIndex::of(&starts));
                for value in
                    starts.iter().flat_map(|&s| [s.saturating_sub(1), s, s.saturating_add(1), s | s >> 1])
                {
                    let expected = starts.iter().rposition(|&start| start <= value);
                    for index in
                        [&|| index.position(value), &|| split.position(value)] as [&dyn Fn() -> usize; 2]
                    {
                        assert_eq!(expected.map(|_| index()), expected, "{value:#x} among {count}");
                    }
                }
            }
        }
    }
}
