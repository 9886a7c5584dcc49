//! Arrays that grow while others read them.

use std::sync::OnceLock;

/// How often an array can double: to 2^32 times the length of its first chunk.
const CHUNKS: usize = 32;

/// An array that grows and never moves: chunks, each twice as long as the one before. Reading takes no lock.
///
/// The first chunk has `FIRST` elements, a power of two.
pub(super) struct Chunked<T, const FIRST: usize> {
    chunks: [OnceLock<Box<[T]>>; CHUNKS],
}

impl<T, const FIRST: usize> Default for Chunked<T, FIRST> {
    fn default() -> Self {
        Self { chunks: [const { OnceLock::new() }; CHUNKS] }
    }
}

impl<T, const FIRST: usize> Chunked<T, FIRST> {
    /// The element, if its chunk was ever used.
    #[inline]
    pub(super) fn get(&self, index: u64) -> Option<&T> {
        let (chunk, offset) = Self::place(index);
        self.chunks.get(chunk)?.get()?.get(offset)
    }

    /// Its chunk and its place there: chunk `n` begins with element `FIRST * (2^n - 1)`.
    #[inline]
    fn place(index: u64) -> (usize, usize) {
        let first = FIRST as u64;
        let chunk = (index / first + 1).ilog2();
        (chunk as usize, (index - first * ((1 << chunk) - 1)) as usize)
    }
}

impl<T: Default, const FIRST: usize> Chunked<T, FIRST> {
    /// The element; a new chunk is full of defaults. The index is below `FIRST * (2^32 - 1)`.
    #[inline]
    pub(super) fn at(&self, index: u64) -> &T {
        let (chunk, offset) = Self::place(index);
        let new = || (0..FIRST << chunk).map(|_| T::default()).collect();
        &self.chunks[chunk].get_or_init(new)[offset]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn each_index_has_an_element_of_its_own() {
        let array = Chunked::<AtomicU64, 4>::default();
        assert!(array.get(0).is_none());
        for index in (0..1000).rev() {
            array.at(index).store(index + 1, Ordering::Relaxed);
        }
        assert!((0..1000).all(|index| array.get(index).unwrap().load(Ordering::Relaxed) == index + 1));
        assert!(array.get(5000).is_none() && array.get(u64::MAX / 2).is_none());
    }
}
