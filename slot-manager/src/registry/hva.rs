//! Host ranges, which may overlap, by what they hold.

use std::hint::select_unpredictable;
use std::slice;

use memory_model::{AddrRange, Hva};

use super::Place;
use super::chunk::Entry;
use super::sorted::{Found, Sorted};

/// Most host ranges overlap no other: those lie in one array, and one search finds what holds an address. The
/// others are sorted by length class, the number of bits of the length. Inside a class no range is longer than
/// twice another, so those that reach an address start within a short stretch before it. (The kernel uses an
/// interval tree.)
#[derive(Clone, Debug, Default)]
pub(super) struct HvaIndex {
    apart: Sorted,
    /// Ranges that overlapped one of `apart` when they came, by ascending class; there are few.
    classes: Vec<Class>,
}

#[derive(Clone, Debug)]
struct Class {
    /// log2 of what is added to the first address of a range to get its last one.
    length: u32,
    ranges: Sorted,
}

impl HvaIndex {
    pub(super) fn insert(&mut self, range: AddrRange<Hva>, place: Place) {
        let entry = Entry { last: range.last().0, place };
        self.home(range).insert(range.first().0, entry);
    }

    /// Where a new range belongs.
    fn home(&mut self, range: AddrRange<Hva>) -> &mut Sorted {
        let near = self.apart.find(range.last().0);
        if near.is_none_or(|near| !near.overlaps(range)) {
            return &mut self.apart;
        }
        let length = length(range);
        let at = self.classes.partition_point(|class| class.length < length);
        if self.classes.get(at).is_none_or(|class| class.length != length) {
            self.classes.insert(at, Class { length, ranges: Sorted::default() });
        }
        &mut self.classes[at].ranges
    }

    pub(super) fn remove(&mut self, range: AddrRange<Hva>, place: Place) {
        if self.apart.remove(range.first().0, place) {
            return;
        }
        let length = length(range);
        self.classes.retain_mut(|class| {
            class.length != length || {
                class.ranges.remove(range.first().0, place);
                class.ranges.len() != 0
            }
        });
    }

    pub(super) fn relocate(&mut self, range: AddrRange<Hva>, from: Place, to: Place) {
        if self.apart.relocate(range.first().0, from, to) {
            return;
        }
        let length = length(range);
        if let Some(class) = self.classes.iter_mut().find(|class| class.length == length) {
            class.ranges.relocate(range.first().0, from, to);
        }
    }

    /// Those of `slots` that share a byte with `range`.
    #[inline]
    pub(super) fn overlapping<'a, S>(&'a self, range: AddrRange<Hva>, slots: &'a [S]) -> Overlapping<'a, S> {
        let near = Near::first(&self.apart, 0, range);
        Overlapping { slots, range, classes: self.classes.iter(), near }
    }
}

fn length(range: AddrRange<Hva>) -> u32 {
    (range.last().0 - range.first().0).checked_ilog2().unwrap_or(0)
}

/// See [`HvaIndex::overlapping`].
pub(super) struct Overlapping<'a, S> {
    slots: &'a [S],
    range: AddrRange<Hva>,
    /// Those not begun.
    classes: slice::Iter<'a, Class>,
    near: Option<Near<'a>>,
}

/// A range that may be one of those looked for.
#[derive(Clone, Copy)]
struct Near<'a> {
    ranges: &'a Sorted,
    found: Found,
    /// If it begins further than this before an address, none before it holds that address.
    reach: u64,
}

impl<'a, S> Iterator for Overlapping<'a, S> {
    type Item = &'a S;

    #[inline]
    fn next(&mut self) -> Option<&'a S> {
        match self.near.take() {
            // The end, whether it shows or not: there is no branch to be guessed.
            Some(last) if last.is_last(self.range) && self.classes.as_slice().is_empty() => {
                select_unpredictable(last.found.overlaps(self.range), Some(last.slot(self.slots)), None)
            }
            near => self.search(near),
        }
    }
}

impl<'a, S> Overlapping<'a, S> {
    fn search(&mut self, mut near: Option<Near<'a>>) -> Option<&'a S> {
        loop {
            let Some(this) = near else {
                let Class { length, ranges } = self.classes.next()?;
                // The longest range of the class reaches that far.
                near = Near::first(ranges, u64::MAX >> (63 - length), self.range);
                continue;
            };
            near = if this.is_last(self.range) { None } else { this.before() };
            if this.found.overlaps(self.range) {
                self.near = near;
                return Some(this.slot(self.slots));
            }
        }
    }
}

impl<'a> Near<'a> {
    #[inline]
    fn first(ranges: &'a Sorted, reach: u64, range: AddrRange<Hva>) -> Option<Self> {
        Some(Self { ranges, found: ranges.find(range.last().0)?, reach })
    }

    /// Whether none before it overlaps `range`.
    #[inline]
    fn is_last(&self, range: AddrRange<Hva>) -> bool {
        range.first().0.checked_sub(self.found.first).is_some_and(|distance| distance > self.reach)
    }

    fn before(self) -> Option<Self> {
        Some(Self { found: self.ranges.before(self.found.position)?, ..self })
    }

    #[inline]
    fn slot<S>(&self, slots: &'a [S]) -> &'a S {
        &slots[self.found.entry.place as usize]
    }
}
