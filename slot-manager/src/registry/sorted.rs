//! A sorted array of ranges beside what they lead to.

/// Ranges by their first number, ascending; equal ones may stand side by side. The firsts lie together, and a
/// sample of them lies together again, so that a search of many touches few cache lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Sorted {
    firsts: Vec<u64>,
    entries: Vec<Entry>,
    /// Each [`STRIDE`]th of `firsts`.
    samples: Vec<u64>,
}

/// The rest of a range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) last: u64,
    pub(super) place: u32,
}

/// Eight cache lines of `firsts`.
const STRIDE: usize = 64;

impl Sorted {
    pub(super) fn len(&self) -> usize {
        self.firsts.len()
    }

    pub(super) fn firsts(&self) -> &[u64] {
        &self.firsts
    }

    /// The entries from that index on, by ascending first.
    pub(super) fn entries(&self, from: usize) -> &[Entry] {
        &self.entries[from..]
    }

    /// How many begin at `number` or below.
    #[inline]
    pub(super) fn count_not_above(&self, number: u64) -> usize {
        // The sample that is the last not above, and those behind it up to the next.
        let Some(sample) = self.samples.partition_point(|&first| first <= number).checked_sub(1) else {
            return 0;
        };
        let from = sample * STRIDE;
        let near = &self.firsts[from..self.firsts.len().min(from + STRIDE)];
        from + near.partition_point(|&first| first <= number)
    }

    /// The last that begins at `number` or below.
    #[inline]
    pub(super) fn last_not_above(&self, number: u64) -> Option<Entry> {
        self.entries.get(self.count_not_above(number).checked_sub(1)?).copied()
    }

    pub(super) fn insert(&mut self, first: u64, last: u64, place: u32) {
        let index = self.count_not_above(first);
        self.firsts.insert(index, first);
        self.entries.insert(index, Entry { last, place });
        self.sample_from(index);
    }

    /// Takes out the range that begins at `first` and leads to `place`.
    pub(super) fn remove(&mut self, first: u64, place: u32) {
        if let Some(index) = self.index_of(first, place) {
            self.firsts.remove(index);
            self.entries.remove(index);
            self.sample_from(index);
        }
    }

    /// Lets the range that begins at `first` and leads to `from` lead to `to`.
    pub(super) fn relocate(&mut self, first: u64, from: u32, to: u32) {
        if let Some(index) = self.index_of(first, from) {
            self.entries[index].place = to;
        }
    }

    fn index_of(&self, first: u64, place: u32) -> Option<usize> {
        let mut equal =
            (0..self.count_not_above(first)).rev().take_while(|&index| self.firsts[index] == first);
        equal.find(|&index| self.entries[index].place == place)
    }

    /// All from `index` on have shifted.
    fn sample_from(&mut self, index: usize) {
        let kept = index.div_ceil(STRIDE);
        self.samples.truncate(kept);
        self.samples.extend(self.firsts[(kept * STRIDE).min(self.firsts.len())..].iter().step_by(STRIDE));
    }
}
