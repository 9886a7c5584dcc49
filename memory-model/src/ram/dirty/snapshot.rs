//! Dirty bits taken out of a bitmap.

use alloc::vec::Vec;

use crate::PageSize;

/// Pages in a word, and words in a word of the summary.
const BITS: u64 = 64;

/// The dirty pages found by one [`snapshot_and_clear`](super::DirtyBitmap::snapshot_and_clear): only the words
/// that have a bit, so that mostly clean memory costs little.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtySnapshot {
    /// A bit for each word of 64 pages: whether it is in `words`.
    summary: Vec<u64>,
    /// The words that are not zero, ascending.
    words: Vec<u64>,
}

impl DirtySnapshot {
    /// The offset of each dirty page in bytes, ascending.
    pub fn pages(&self) -> impl Iterator<Item = u64> {
        self.words().flat_map(|(word, bits)| {
            set_bits(bits).map(move |bit| (word * BITS + bit) << PageSize::Size4K.shift())
        })
    }

    /// How many pages are dirty.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|bits| u64::from(bits.count_ones())).sum()
    }

    /// Whether no page is dirty.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether the page that holds the byte at `offset` is dirty.
    pub fn contains(&self, offset: u64) -> bool {
        let page = offset >> PageSize::Size4K.shift();
        let (word, bit) = (page / BITS, page % BITS);
        let Some(&summary) = self.summary.get((word / BITS) as usize) else { return false };
        if summary >> (word % BITS) & 1 == 0 {
            return false;
        }
        let before = self.summary[..(word / BITS) as usize].iter().map(|bits| bits.count_ones()).sum::<u32>();
        let index = before + (summary & !(u64::MAX << (word % BITS))).count_ones();
        self.words[index as usize] >> bit & 1 != 0
    }

    /// Which 64 pages, and their bits.
    fn words(&self) -> impl Iterator<Item = (u64, u64)> {
        let indices = (0..).zip(&self.summary);
        indices
            .flat_map(|(index, &bits)| set_bits(bits).map(move |bit| index * BITS + bit))
            .zip(self.words.iter().copied())
    }

    /// Adds the bits of word `word`, which lies behind all added before.
    pub(super) fn push(&mut self, word: u64, bits: u64) {
        if bits != 0 {
            self.push_words(word / BITS * BITS, 1 << (word % BITS), &[bits]);
        }
    }

    /// Adds words that are not zero: those of the 64 from `first` on that `summary` names. All lie behind those
    /// added before.
    pub(super) fn push_words(&mut self, first: u64, summary: u64, words: &[u64]) {
        let index = (first / BITS) as usize;
        if index >= self.summary.len() {
            self.summary.resize(index + 1, 0);
        }
        self.summary[index] |= summary;
        self.words.extend_from_slice(words);
    }

    /// All pages of both.
    pub(super) fn union(self, other: Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return if self.is_empty() { other } else { self };
        }
        let mut words: Vec<_> = self.words().chain(other.words()).collect();
        words.sort_unstable_by_key(|&(word, _)| word);
        let mut all = Self::default();
        for same in words.chunk_by(|one, next| one.0 == next.0) {
            all.push(same[0].0, same.iter().fold(0, |bits, (_, more)| bits | more));
        }
        all
    }
}

fn set_bits(mut bits: u64) -> impl Iterator<Item = u64> {
    core::iter::from_fn(move || {
        let bit = (bits != 0).then(|| u64::from(bits.trailing_zeros()))?;
        bits &= bits - 1;
        Some(bit)
    })
}
