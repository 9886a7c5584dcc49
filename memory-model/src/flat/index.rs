//! Finds the last of many start addresses that is not above an address, without a branch that depends on it.
//!
//! The addresses are cut into buckets of equal length, and for each the last start below it is known. From there
//! a binary search with as many steps as the fullest bucket needs finds the rest: none or one where starts lie
//! evenly, as those of memory and of BARs mostly do, and never more than one over all of them.

use alloc::vec::Vec;
use core::hint::select_unpredictable;

/// An index of start addresses.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    /// The first start.
    base: u64,
    /// log2 of a bucket's length.
    shift: u32,
    /// The length of the first step of the binary search, a power of two; 0 if there is nothing to search.
    reach: usize,
    /// The number of the last start that is not above the first address of each bucket.
    buckets: Vec<u32>,
    /// That of the last bucket, which goes for all addresses behind it as well.
    last_known: u32,
    /// The address before each start; behind them the last address of all, which no address is above, as far
    /// as a search can reach.
    before: Vec<u64>,
}

impl Index {
    /// Of `starts`, ascending.
    pub(super) fn of(starts: &[u64]) -> Self {
        let (Some(&base), Some(&last)) = (starts.first(), starts.last()) else { return Self::default() };
        // Two to four buckets for each start.
        let wanted = 4 * starts.len() as u64;
        let shift = (0..64).find(|&shift| (last - base) >> shift < wanted).expect("a bucket of 2^63 bytes");
        let (mut buckets, mut fullest, mut next) = (Vec::new(), 0, 0);
        for bucket in 0..=(last - base) >> shift {
            let first = base + (bucket << shift);
            while starts.get(next).is_some_and(|&start| start <= first) {
                next += 1;
            }
            let known = next - 1;
            buckets.push(known as u32);
            while starts.get(next).is_some_and(|&start| (start - base) >> shift == bucket) {
                next += 1;
            }
            fullest = fullest.max(next - known);
        }
        let reach = fullest.next_power_of_two() / 2;
        let mut before: Vec<u64> = starts.iter().map(|start| start.wrapping_sub(1)).collect();
        before.resize(starts.len() + 2 * reach, u64::MAX);
        let last_known = *buckets.last().expect("the first start has a bucket");
        Self { base, shift, reach, buckets, last_known, before }
    }

    /// The number of the last start that is not above `value`; any number if all are above.
    #[inline]
    pub(super) fn position(&self, value: u64) -> usize {
        let bucket = (value.wrapping_sub(self.base) >> self.shift) as usize;
        let mut position = *self.buckets.get(bucket).unwrap_or(&self.last_known) as usize;
        let mut step = self.reach;
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
        let layouts: [&dyn Fn(u64) -> u64; 4] =
            [&|i| 3 * i, &|i| i * i * i, &|i| u64::MAX - 5 * (1000 - i), &|i| {
                if i < 500 { i } else { i << 50 }
            }];
        for layout in layouts {
            for count in [1, 2, 3, 9, 64, 65, 1001] {
                let starts: Vec<u64> = (0..count).map(layout).collect();
                let index = Index::of(&starts);
                for value in
                    starts.iter().flat_map(|&s| [s.saturating_sub(1), s, s.saturating_add(1), s | s >> 1])
                {
                    let expected = starts.iter().rposition(|&start| start <= value);
                    let found = expected.map(|_| index.position(value));
                    assert_eq!(found, expected, "{value:#x} among {count}");
                }
            }
        }
    }
}
