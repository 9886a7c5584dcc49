//! A short run of ranges, searched without a branch that depends on what is looked for.

use std::hint::select_unpredictable;

use super::sorted::Found;

/// The most ranges of a chunk, a power of two: their firsts are two cache lines.
pub(super) const CHUNK: usize = 16;

/// Ranges by their first number, ascending; equal ones may stand side by side.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(super) struct Chunk {
    len: usize,
    /// Those behind `len` are as high as can be, so that every search is as long.
    firsts: [u64; CHUNK],
    entries: [Entry; CHUNK],
}

/// The rest of a range, and what it leads to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Entry {
    pub(super) last: u64,
    pub(super) place: u32,
}

impl Chunk {
    pub(super) fn of(first: u64, entry: Entry) -> Self {
        let mut chunk = Self { len: 0, firsts: [u64::MAX; CHUNK], entries: [Entry::default(); CHUNK] };
        chunk.insert(0, first, entry);
        chunk
    }

    pub(super) fn firsts(&self) -> &[u64] {
        &self.firsts[..self.len]
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries[..self.len]
    }

    /// What is at `index` of this chunk, which is the `chunk`th.
    #[inline]
    pub(super) fn found(&self, chunk: usize, index: usize) -> Found {
        Found { first: self.firsts[index], entry: self.entries[index], position: (chunk, index) }
    }

    pub(super) fn entry_mut(&mut self, index: usize) -> &mut Entry {
        &mut self.entries[index]
    }

    /// The last that begins at `number` or below; the first, if all begin above.
    #[inline]
    pub(super) fn last_not_above(&self, number: u64) -> usize {
        let index = last_not_above(&self.firsts, number);
        // What fills up the array equals the highest number there is.
        if number == u64::MAX { self.len - 1 } else { index }
    }

    /// There must be room.
    pub(super) fn insert(&mut self, index: usize, first: u64, entry: Entry) {
        self.firsts.copy_within(index..self.len, index + 1);
        self.entries.copy_within(index..self.len, index + 1);
        (self.firsts[index], self.entries[index]) = (first, entry);
        self.len += 1;
    }

    pub(super) fn remove(&mut self, index: usize) {
        self.firsts.copy_within(index + 1..self.len, index);
        self.entries.copy_within(index + 1..self.len, index);
        self.truncate(self.len - 1);
    }

    /// Adds those of `next`, for which there must be room.
    pub(super) fn append(&mut self, next: &Self) {
        self.firsts[self.len..][..next.len].copy_from_slice(next.firsts());
        self.entries[self.len..][..next.len].copy_from_slice(next.entries());
        self.len += next.len;
    }

    /// Keeps the first half, and gives the other.
    pub(super) fn split(&mut self) -> Self {
        let (mut rest, kept) = (self.clone(), self.len / 2);
        rest.firsts.copy_within(kept.., 0);
        rest.entries.copy_within(kept.., 0);
        rest.truncate(self.len - kept);
        self.truncate(kept);
        rest
    }

    fn truncate(&mut self, len: usize) {
        self.firsts[len..].fill(u64::MAX);
        self.len = len;
    }
}

/// The index of the last of `ascending` that is not above `number`; 0 if all are above. Their count is a power of
/// two, and the last not necessarily the one that was meant: those that fill up the array may equal `number`.
#[inline]
pub(super) fn last_not_above(ascending: &[u64], number: u64) -> usize {
    let (mut found, mut step) = (0, ascending.len() / 2);
    while step > 0 {
        let probe = found + step;
        found = select_unpredictable(ascending[probe] <= number, probe, found);
        step /= 2;
    }
    found
}
