//! One bit a page, set by many threads, taken by one.
//!
//! Two buffers take turns. Markers set bits in the active one. Whoever takes the bits makes the other one
//! active first, so that nobody needs the old one any more: it is read and cleared with plain loads and
//! stores, where a single buffer would need a locked operation for each word.
//!
//! A marker can be late: it looked up the active buffer, and sets its bit after the turn. So it looks again
//! afterwards, and if the turn has changed it sets the bit in the new buffer too. All of these steps are
//! sequentially consistent: either the taker sees the bit, or the marker sees the turn. What a late marker
//! leaves behind in the old buffer makes a clean page look dirty later, which costs a copy and is never wrong.

use alloc::boxed::Box;
use core::fmt;
use core::hint::spin_loop;
use core::ops::Range;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use super::DirtySnapshot;
use super::atomic::{AtomicBool, AtomicU64};
use crate::PageSize;

/// Pages in a word, and words in a word of a snapshot's summary.
const BITS: u64 = 64;

/// The dirty bits of one client: a bit for each 4 KiB page. Offsets are bytes from the start of the memory.
///
/// ```
/// use memory_model::DirtyBitmap;
/// let dirty = DirtyBitmap::new(1 << 30);
/// dirty.mark(0x1fff, 2);
/// assert!(dirty.is_dirty(0x1000, 1) && dirty.is_dirty(0x2000, 1));
/// let taken = dirty.snapshot_and_clear(0..0x2000);
/// assert_eq!(taken.pages().collect::<Vec<_>>(), [0x1000]);
/// assert!(!dirty.is_dirty(0x1000, 1) && dirty.is_dirty(0x2000, 1));
/// ```
pub struct DirtyBitmap {
    pages: u64,
    /// How often the buffers have taken turns; the lowest bit names the active one.
    turn: AtomicU64,
    /// Both buffers, one behind the other: the address of a bit needs no pointer that depends on the turn.
    words: Box<[AtomicU64]>,
    /// Whether the idle buffer may have bits that matter: those outside the range that was taken from it.
    left_behind: AtomicBool,
    /// Held while bits are taken: one taker at a time.
    taking: AtomicBool,
}

/// One of the two buffers.
struct Buffer<'a>(&'a [AtomicU64]);

impl DirtyBitmap {
    /// Clean bits for `bytes` bytes of memory.
    pub fn new(bytes: u64) -> Self {
        let pages = bytes.div_ceil(PageSize::Size4K.bytes());
        Self {
            pages,
            turn: AtomicU64::new(0),
            words: (0..2 * pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect(),
            left_behind: AtomicBool::new(false),
            taking: AtomicBool::new(false),
        }
    }

    /// Marks every page that `len` bytes at `offset` touch. What lies outside the memory is ignored.
    #[inline]
    pub fn mark(&self, offset: u64, len: u64) {
        let page = offset >> PageSize::Size4K.shift();
        if len.wrapping_sub(1) < PageSize::Size4K.bytes() - (offset & (PageSize::Size4K.bytes() - 1))
            && page < self.pages
        {
            // One page: by far the commonest case.
            self.mark_in_turn(|turn| self.mark_page(turn, page));
        } else {
            self.mark_pages(self.pages_of(offset..offset.saturating_add(len)));
        }
    }

    fn mark_pages(&self, pages: Range<u64>) {
        if !pages.is_empty() {
            self.mark_in_turn(|turn| self.buffer(turn).mark(&pages));
        }
    }

    /// Marks in the active buffer, and again if that was not the active one any more.
    #[inline]
    fn mark_in_turn(&self, mark: impl Fn(u64)) {
        let mut turn = self.turn.load(SeqCst);
        loop {
            mark(turn);
            let now = self.turn.load(SeqCst);
            if now == turn {
                return;
            }
            turn = now;
        }
    }

    /// Whether any page that `len` bytes at `offset` touch is dirty.
    pub fn is_dirty(&self, offset: u64, len: u64) -> bool {
        let pages = self.pages_of(offset..offset.saturating_add(len));
        [0, 1]
            .map(|turn| self.buffer(turn))
            .iter()
            .any(|buffer| masks(&pages).any(|(word, mask)| buffer.0[word as usize].load(Acquire) & mask != 0))
    }

    /// Takes the dirty bits of the pages that `range` touches and leaves them clean. A page marked meanwhile
    /// is in this snapshot or in a later one.
    ///
    /// A page's bytes must be read after this call: a writer marks after it has written.
    pub fn snapshot_and_clear(&self, range: Range<u64>) -> DirtySnapshot {
        let pages = self.pages_of(range);
        while self.taking.compare_exchange_weak(false, true, Acquire, Relaxed).is_err() {
            spin_loop();
        }
        let turn = self.turn.load(Relaxed);
        let mut taken = DirtySnapshot::default();
        if !pages.is_empty() {
            if self.left_behind.load(Relaxed) {
                taken = self.buffer(turn + 1).take(&pages);
            }
            self.turn.store(turn + 1, SeqCst);
            taken = taken.union(self.buffer(turn).take(&pages));
            self.left_behind.store(pages != (0..self.pages), Relaxed);
        }
        self.taking.store(false, Release);
        taken
    }

    /// What [`Buffer::mark`] does, for one page.
    #[inline]
    fn mark_page(&self, turn: u64, page: u64) {
        let first = (turn & 1) * (self.words.len() as u64 / 2);
        self.words[(first + page / BITS) as usize].fetch_or(1 << (page % BITS), SeqCst);
    }

    #[inline]
    fn buffer(&self, turn: u64) -> Buffer<'_> {
        let (first, second) = self.words.split_at(self.words.len() / 2);
        Buffer(if turn & 1 == 0 { first } else { second })
    }

    fn pages_of(&self, bytes: Range<u64>) -> Range<u64> {
        if bytes.is_empty() {
            return 0..0;
        }
        let shift = PageSize::Size4K.shift();
        bytes.start >> shift..(((bytes.end - 1) >> shift) + 1).min(self.pages)
    }
}

impl Buffer<'_> {
    fn mark(&self, pages: &Range<u64>) {
        for (word, mask) in masks(pages) {
            self.0[word as usize].fetch_or(mask, SeqCst);
        }
    }

    /// Takes the bits of `pages`. Only for the idle buffer: a bit that a late marker sets meanwhile may be
    /// lost, and that marker sets it again in the active one.
    fn take(&self, pages: &Range<u64>) -> DirtySnapshot {
        let mut taken = DirtySnapshot::default();
        let Range { start: mut word, end } = words_of(pages);
        while word < end {
            let whole = pages.start <= word * BITS && (word + BITS) * BITS <= pages.end;
            if word % BITS == 0 && whole {
                self.take_words(word, &mut taken);
                word += BITS;
            } else {
                self.take_word(word, mask_within(word, pages), &mut taken);
                word += 1;
            }
        }
        taken
    }

    /// Takes a word's bits in `mask`.
    fn take_word(&self, index: u64, mask: u64, taken: &mut DirtySnapshot) {
        let word = &self.0[index as usize];
        let found = word.load(SeqCst);
        word.store(found & !mask, Relaxed);
        taken.push(index, found & mask);
    }

    /// Takes all bits of the [`BITS`] words from `first` on, without a branch for each.
    fn take_words(&self, first: u64, taken: &mut DirtySnapshot) {
        let words = &self.0[first as usize..][..BITS as usize];
        if words.iter().fold(0, |all, word| all | word.load(SeqCst)) == 0 {
            return;
        }
        let (mut found, mut count, mut summary) = ([0; BITS as usize], 0, 0);
        for (bit, word) in words.iter().enumerate() {
            let bits = word.load(SeqCst);
            word.store(0, Relaxed);
            found[count] = bits;
            count += usize::from(bits != 0);
            summary |= u64::from(bits != 0) << bit;
        }
        taken.push_words(first, summary, &found[..count]);
    }
}

/// The words that hold the bits of `pages`.
fn words_of(pages: &Range<u64>) -> Range<u64> {
    if pages.is_empty() { 0..0 } else { pages.start / BITS..(pages.end - 1) / BITS + 1 }
}

/// For each word that holds bits of `bits`: its index, and which of its bits those are.
fn masks(bits: &Range<u64>) -> impl Iterator<Item = (u64, u64)> + use<> {
    let bits = bits.clone();
    words_of(&bits).map(move |word| (word, mask_within(word, &bits)))
}

/// Which bits of word `word` lie in `bits`, of which it holds at least one.
fn mask_within(word: u64, bits: &Range<u64>) -> u64 {
    let first = bits.start.saturating_sub(word * BITS);
    let past_last = (bits.end - word * BITS).min(BITS);
    (u64::MAX >> (BITS - (past_last - first))) << first
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DirtyBitmap({:#x} pages)", self.pages)
    }
}
