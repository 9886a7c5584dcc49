//! Ranges in order, beside what they lead to.

use memory_model::{AddrRange, Address};

use super::chunk::{CHUNK, Chunk, Entry, last_not_above};

/// Ranges by their first number, ascending; equal ones may stand side by side. They are kept in chunks, so that a
/// new one shifts few others; the first numbers of the chunks lie together, and a look-up searches first those,
/// then one chunk.
#[derive(Clone, Debug, Default)]
pub(super) struct Sorted {
    /// The first number of each chunk, filled up to a power of two as a chunk's are.
    firsts: Vec<u64>,
    /// None is empty.
    #[expect(clippy::vec_box, reason = "a new chunk shifts those behind it")]
    chunks: Vec<Box<Chunk>>,
    len: usize,
}

/// A range, and where it is: chunk, and index in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) first: u64,
    pub(super) entry: Entry,
    pub(super) position: (usize, usize),
}

impl Found {
    /// Without a branch.
    #[inline]
    pub(super) fn overlaps<A: Address>(&self, range: AddrRange<A>) -> bool {
        (self.first <= range.last().raw()) & (range.first().raw() <= self.entry.last)
    }
}

impl Sorted {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The last range that begins at `number` or below; the first of all, if they begin above. None if there is
    /// no range.
    #[inline(always)] // A call costs as much as the search.
    pub(super) fn find(&self, number: u64) -> Option<Found> {
        let at = match last_not_above(&self.firsts, number) {
            at if at < self.chunks.len() => at,
            // What fills up the array equals the highest number there is.
            _ => self.chunks.len().checked_sub(1)?,
        };
        let chunk = &self.chunks[at];
        Some(chunk.found(at, chunk.last_not_above(number)))
    }

    /// The range before.
    #[inline]
    pub(super) fn before(&self, (chunk, index): (usize, usize)) -> Option<Found> {
        if let Some(index) = index.checked_sub(1) {
            return Some(self.chunks[chunk].found(chunk, index));
        }
        let chunk = chunk.checked_sub(1)?;
        Some(self.chunks[chunk].found(chunk, self.chunks[chunk].firsts().len() - 1))
    }

    /// All ranges.
    pub(super) fn iter(&self) -> impl Iterator<Item = Entry> {
        self.chunks.iter().flat_map(|chunk| chunk.entries()).copied()
    }

    /// All from the one that [`Sorted::find`] finds.
    pub(super) fn iter_from(&self, number: u64) -> impl Iterator<Item = Entry> {
        let (chunk, index) = self.find(number).map_or((0, 0), |found| found.position);
        let mut chunks = self.chunks.iter().skip(chunk);
        let begun = chunks.next().map_or(&[][..], |chunk| &chunk.entries()[index..]);
        begun.iter().chain(chunks.flat_map(|chunk| chunk.entries())).copied()
    }

    /// All first numbers.
    pub(super) fn firsts(&self) -> impl Iterator<Item = u64> {
        self.chunks.iter().flat_map(|chunk| chunk.firsts()).copied()
    }

    pub(super) fn insert(&mut self, first: u64, entry: Entry) {
        self.len += 1;
        let Some(near) = self.find(first) else {
            return self.insert_chunk(0, Chunk::of(first, entry));
        };
        let (chunk, index) = near.position;
        let index = index + usize::from(near.first <= first);
        let is_last = chunk + 1 == self.chunks.len();
        let in_chunk = &mut self.chunks[chunk];
        if in_chunk.firsts().len() < CHUNK {
            in_chunk.insert(index, first, entry);
            self.firsts[chunk] = in_chunk.firsts()[0];
            return;
        }
        // Those that come in order fill their chunks.
        match (chunk, index) {
            (0, 0) => self.insert_chunk(0, Chunk::of(first, entry)),
            (_, CHUNK) if is_last => self.insert_chunk(chunk + 1, Chunk::of(first, entry)),
            _ => {
                let mut rest = in_chunk.split();
                match index.checked_sub(in_chunk.firsts().len()) {
                    Some(index) => rest.insert(index, first, entry),
                    None => in_chunk.insert(index, first, entry),
                }
                self.insert_chunk(chunk + 1, rest);
            }
        }
    }

    /// Takes out the range that begins at `first` and leads to `place`. Whether it is there.
    pub(super) fn remove(&mut self, first: u64, place: u32) -> bool {
        let Some((chunk, index)) = self.position_of(first, place) else { return false };
        self.len -= 1;
        self.chunks[chunk].remove(index);
        match self.chunks[chunk].firsts().first() {
            Some(&first) => self.firsts[chunk] = first,
            None => self.remove_chunk(chunk),
        }
        if let [this, next, ..] = &mut self.chunks[chunk..]
            && this.firsts().len() + next.firsts().len() <= CHUNK / 2
        {
            this.append(next);
            self.remove_chunk(chunk + 1);
        }
        true
    }

    /// Lets the range that begins at `first` and leads to `from` lead to `to`. Whether it is there.
    pub(super) fn relocate(&mut self, first: u64, from: u32, to: u32) -> bool {
        let Some((chunk, index)) = self.position_of(first, from) else { return false };
        self.chunks[chunk].entry_mut(index).place = to;
        true
    }

    fn position_of(&self, first: u64, place: u32) -> Option<(usize, usize)> {
        let from = std::iter::successors(self.find(first), |found| self.before(found.position));
        let mut equal = from.take_while(|found| found.first == first);
        equal.find(|found| found.entry.place == place).map(|found| found.position)
    }

    fn insert_chunk(&mut self, chunk: usize, new: Chunk) {
        self.firsts.insert(chunk, new.firsts()[0]);
        self.chunks.insert(chunk, Box::new(new));
        self.fill_up();
    }

    fn remove_chunk(&mut self, chunk: usize) {
        self.firsts.remove(chunk);
        self.chunks.remove(chunk);
        self.fill_up();
    }

    fn fill_up(&mut self) {
        self.firsts.truncate(self.chunks.len());
        self.firsts.resize(self.chunks.len().next_power_of_two(), u64::MAX);
    }
}
