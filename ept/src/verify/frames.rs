//! Sets of 4 KiB frames: one bit each.

use alloc::vec::Vec;

use memory_model::{AddrRange, Hpa};

use crate::error::Error;

/// A set of frames out of one range of host-physical addresses.
#[derive(Clone, Debug)]
pub(super) struct FrameSet {
    /// Number of the first frame.
    first: u64,
    /// How many frames the range has.
    frames: u64,
    words: Vec<u64>,
}

impl FrameSet {
    /// The empty set. It has room for all frames of `range` at once: a bit each.
    pub fn new(range: AddrRange<Hpa>) -> Result<Self, Error> {
        let first = range.first().page_number();
        let frames = range.last().page_number() - first + 1;
        let refused = Error::HostRam { range };
        let len = usize::try_from(frames.div_ceil(64)).map_err(|_| refused)?;
        let mut words = Vec::new();
        words.try_reserve_exact(len).map_err(|_| refused)?;
        words.resize(len, 0);
        Ok(Self { first, frames, words })
    }

    /// The empty set of the same range.
    pub fn cleared(&self) -> Self {
        Self { words: alloc::vec![0; self.words.len()], ..*self }
    }

    /// The bit of the frame; `None` outside the range.
    #[inline]
    fn bit(&self, frame: u64) -> Option<u64> {
        let bit = frame.wrapping_sub(self.first);
        (bit < self.frames).then_some(bit)
    }

    /// Whether the frame of that number is in the range.
    #[inline]
    pub fn spans(&self, frame: u64) -> bool {
        self.bit(frame).is_some()
    }

    #[inline]
    pub fn contains(&self, frame: u64) -> bool {
        self.bit(frame).is_some_and(|bit| self.words[(bit / 64) as usize] >> (bit % 64) & 1 != 0)
    }

    /// Adds the frame, which lies in the range; `false` if it was there.
    #[inline]
    pub fn insert(&mut self, frame: u64) -> bool {
        let Some(bit) = self.bit(frame) else { return true };
        let word = &mut self.words[(bit / 64) as usize];
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
            let mask = (u64::MAX >> (64 - here)) << (at % 64);
            let word = &mut self.words[(at / 64) as usize];
            if *word & mask != 0 {
                twice.words[(at / 64) as usize] |= *word & mask;
            }
            *word |= mask;
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
        for &(at, bits) in words.iter() {
            let (Some(word), Some(twice)) = (self.words.get_mut(at), twice.words.get_mut(at)) else {
                continue;
            };
            if *word & bits != 0 {
                *twice |= *word & bits;
            }
            *word |= bits;
        }
        outside
    }

    /// Adds all of `other`, a set of the same range, and to `twice` what both had.
    pub fn merge(&mut self, other: &Self, twice: &mut Self) {
        for ((ours, theirs), twice) in self.words.iter_mut().zip(&other.words).zip(&mut twice.words) {
            *twice |= *ours & theirs;
            *ours |= theirs;
        }
    }

    /// Adds all of `other`, a set of the same range.
    pub fn union(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(ours, theirs)| *ours |= theirs);
    }

    /// Whether the two, sets of the same range, share a frame.
    pub fn intersects(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(ours, theirs)| ours & theirs != 0)
    }

    /// How many frames are in the set.
    pub fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
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
}
