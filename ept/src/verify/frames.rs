//! Sets of 4 KiB frames: one bit each, in chunks that are there once a frame of theirs is.

use alloc::boxed::Box;
use alloc::vec::Vec;

use memory_model::{AddrRange, Hpa};

use crate::error::Error;

/// Words of a chunk: it spans 16 MiB.
const WORDS: usize = 64;

type Chunk = [u64; WORDS];

/// A set of frames out of one range of host-physical addresses. What it takes follows from the frames in it: the range is
/// all RAM of a host, and a guest may have little of it.
#[derive(Clone, Debug)]
pub(super) struct FrameSet {
    /// Number of the first frame.
    first: u64,
    /// How many frames the range has.
    frames: u64,
    chunks: Vec<Option<Box<Chunk>>>,
}

impl FrameSet {
    /// The empty set.
    pub fn new(range: AddrRange<Hpa>) -> Result<Self, Error> {
        let first = range.first().page_number();
        let frames = range.last().page_number() - first + 1;
        let refused = Error::HostRam { range };
        let len = usize::try_from(frames.div_ceil(64 * WORDS as u64)).map_err(|_| refused)?;
        let mut chunks = Vec::new();
        chunks.try_reserve_exact(len).map_err(|_| refused)?;
        chunks.resize(len, None);
        Ok(Self { first, frames, chunks })
    }

    /// The empty set of the same range.
    pub fn cleared(&self) -> Self {
        Self { chunks: alloc::vec![None; self.chunks.len()], ..*self }
    }

    /// The bit of the frame; `None` outside the range.
    #[inline]
    fn bit(&self, frame: u64) -> Option<u64> {
        let bit = frame.wrapping_sub(self.first);
        (bit < self.frames).then_some(bit)
    }

    #[inline]
    fn word(&mut self, at: usize) -> &mut u64 {
        let chunk = self.chunks[at / WORDS].get_or_insert_with(|| Box::new([0; WORDS]));
        &mut chunk[at % WORDS]
    }

    /// Adds frames of one word.
    #[inline]
    fn add(&mut self, at: usize, bits: u64, twice: &mut Self) {
        let word = self.word(at);
        let again = *word & bits;
        *word |= bits;
        if again != 0 {
            *twice.word(at) |= again;
        }
    }

    /// Whether the frame of that number is in the range.
    #[inline]
    pub fn spans(&self, frame: u64) -> bool {
        self.bit(frame).is_some()
    }

    #[inline]
    pub fn contains(&self, frame: u64) -> bool {
        self.bit(frame).is_some_and(|bit| {
            let at = (bit / 64) as usize;
            self.chunks[at / WORDS].as_ref().is_some_and(|chunk| chunk[at % WORDS] >> (bit % 64) & 1 != 0)
        })
    }

    /// Adds the frame, which lies in the range; `false` if it was there.
    #[inline]
    pub fn insert(&mut self, frame: u64) -> bool {
        let Some(bit) = self.bit(frame) else { return true };
        let word = self.word((bit / 64) as usize);
        let (old, mask) = (*word, 1 << (bit % 64));
        *word |= mask;
        old & mask == 0
    }

    /// Adds those of `count` frames from `frame` on that lie in the range, and adds to `twice` those that were there;
    /// returns how many lie outside.
    #[inline]
    pub fn insert_run(&mut self, frame: u64, count: u64, twice: &mut Self) -> u64 {
        let skip = self.first.saturating_sub(frame).min(count);
        let bit = frame.saturating_sub(self.first);
        let inside = (count - skip).min(self.frames.saturating_sub(bit));
        let (mut at, end) = (bit, bit + inside);
        while at < end {
            let here = (64 - at % 64).min(end - at);
            self.add((at / 64) as usize, (u64::MAX >> (64 - here)) << (at % 64), twice);
            at += here;
        }
        count - inside
    }

    /// The same for single frames, given by their addresses. `words` is scratch space: the words to be changed are all
    /// known before the first is read, so that reading one does not wait for another.
    #[inline]
    pub fn insert_all(
        &mut self,
        addresses: impl Iterator<Item = u64>,
        twice: &mut Self,
        words: &mut Vec<(usize, u64)>,
    ) -> u64 {
        let mut outside = 0;
        words.clear();
        let (mut at, mut bits) = (0, 0);
        for address in addresses {
            let bit = (address >> 12).wrapping_sub(self.first);
            if bit >= self.frames {
                outside += 1;
                continue;
            }
            let (word, mask) = ((bit / 64) as usize, 1 << (bit % 64));
            // A bit that is there already goes into a pair of its own, to be met again.
            if word != at || bits & mask != 0 {
                words.push((at, bits));
                (at, bits) = (word, 0);
            }
            bits |= mask;
        }
        words.push((at, bits));
        for &(at, bits) in words.iter().filter(|(_, bits)| *bits != 0) {
            self.add(at, bits, twice);
        }
        outside
    }

    /// Adds all of `other`, a set of the same range, and to `twice` what both had.
    pub fn merge(&mut self, other: &Self, twice: &mut Self) {
        for (number, theirs) in other.chunks.iter().enumerate() {
            let Some(theirs) = theirs else { continue };
            match &mut self.chunks[number] {
                Some(_) => {
                    (number * WORDS..).zip(theirs.iter()).for_each(|(at, &bits)| self.add(at, bits, twice))
                }
                none => *none = Some(theirs.clone()),
            }
        }
    }

    /// Adds all of `other`, a set of the same range.
    pub fn union(&mut self, other: &Self) {
        for (ours, theirs) in self.chunks.iter_mut().zip(&other.chunks) {
            match (ours, theirs) {
                (Some(ours), Some(theirs)) => {
                    ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| *ours |= theirs);
                }
                (none, Some(theirs)) => *none = Some(theirs.clone()),
                (_, None) => {}
            }
        }
    }

    /// Whether the two, sets of the same range, share a frame.
    pub fn intersects(&self, other: &Self) -> bool {
        let chunks = self
            .chunks
            .iter()
            .zip(&other.chunks)
            .filter_map(|(ours, theirs)| ours.as_ref().zip(theirs.as_ref()));
        chunks
            .flat_map(|(ours, theirs)| ours.iter().zip(theirs.iter()))
            .any(|(ours, theirs)| ours & theirs != 0)
    }

    /// How many frames are in the set.
    pub fn len(&self) -> u64 {
        self.chunks
            .iter()
            .flatten()
            .flat_map(|chunk| chunk.iter())
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_at_the_ends_of_the_range_and_seen_twice_where_they_meet() {
        let range = AddrRange::inclusive(Hpa(0x10_0000), Hpa(0x1f_ffff)).unwrap();
        let mut set = FrameSet::new(range).unwrap();
        let mut twice = set.cleared();
        assert_eq!(set.insert_run(0xf0, 0x20, &mut twice), 0x10);
        assert_eq!(set.insert_run(0x1f0, 0x20, &mut twice), 0x10);
        assert_eq!(set.insert_run(0, 0x100, &mut twice), 0x100);
        assert_eq!(set.insert_run(0x200, 5, &mut twice), 5);
        assert_eq!((set.len(), twice.len()), (0x20, 0));
        assert_eq!(set.insert_run(0x10f, 0xe2, &mut twice), 0);
        assert_eq!((set.len(), twice.len()), (0x100, 2));
        let ends = [0x10f, 0x1f0].map(|frame| twice.contains(frame));
        assert_eq!((ends, twice.contains(0x110), set.contains(0xff)), ([true; 2], false, false));
    }

    #[test]
    fn single_frames_are_added_as_runs_are() {
        let range = AddrRange::inclusive(Hpa(0x10_0000), Hpa(0x1f_ffff)).unwrap();
        let mut set = FrameSet::new(range).unwrap();
        let mut twice = set.cleared();
        let frames = [0x101, 0x102, 0x100, 0x1ff, 0x102, 0x100, 0xff, 0x200, 0x140, 0x140];
        let add = |set: &mut FrameSet, twice: &mut FrameSet| {
            set.insert_all(frames.map(|frame| frame << 12).into_iter(), twice, &mut Vec::new())
        };
        assert_eq!(add(&mut set, &mut twice), 2);
        let members = |set: &FrameSet| (0..0x300).filter(|&frame| set.contains(frame)).collect::<Vec<_>>();
        assert_eq!(members(&set), [0x100, 0x101, 0x102, 0x140, 0x1ff]);
        assert_eq!(members(&twice), [0x100, 0x102, 0x140]);
        add(&mut set, &mut twice);
        assert_eq!(members(&twice), members(&set));
    }

    #[test]
    fn what_two_sets_have_is_joined_chunk_by_chunk() {
        let range = AddrRange::new(Hpa(0), 4 << 24).unwrap();
        let (chunk, empty) = (64 * WORDS as u64, FrameSet::new(range).unwrap());
        let set = |frames: &[u64]| {
            let mut set = empty.clone();
            frames.iter().for_each(|&frame| assert!(set.insert(frame)));
            set
        };
        let (one, other) = (set(&[1, 2, chunk]), set(&[2, chunk + 1, 3 * chunk]));
        let (mut both, mut twice) = (one.clone(), empty.cleared());
        both.merge(&other, &mut twice);
        let mut union = one.clone();
        union.union(&other);
        for joined in [both, union] {
            let members: Vec<_> = (0..4 * chunk).filter(|&frame| joined.contains(frame)).collect();
            assert_eq!(members, [1, 2, chunk, chunk + 1, 3 * chunk]);
            assert_eq!(joined.len(), 5);
        }
        assert!(twice.len() == 1 && twice.contains(2));
        assert!(one.intersects(&other) && !one.intersects(&set(&[0, chunk + 1, 2 * chunk])));
        assert!(!one.intersects(&empty) && empty.len() == 0);
    }
}
