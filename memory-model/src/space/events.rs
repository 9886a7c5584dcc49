//! Eventfds and coalesced parts: they follow the view (rule R28).

use std::vec::Vec;

use crate::flat::{Diff, News};
use crate::tree::Changes;
use crate::{AddrRange, Eventfd, FlatEventfd, FlatRange, FlatView, Gpa, RegionId, RegionTree};

/// A window that begins this far below another can reach into it: the widest eventfd has 8 bytes.
const WIDEST: u64 = 8;

/// What is in sight of one address space, sorted.
#[derive(Clone, Default, PartialEq)]
pub(super) struct Events {
    eventfds: Vec<FlatEventfd>,
    coalesced: Vec<AddrRange<Gpa>>,
}

/// What tells two sets apart.
#[derive(Default)]
pub(super) struct EventsChange {
    pub(super) eventfds_gone: Vec<FlatEventfd>,
    pub(super) eventfds_new: Vec<FlatEventfd>,
    pub(super) coalesced_gone: Vec<AddrRange<Gpa>>,
    pub(super) coalesced_new: Vec<AddrRange<Gpa>>,
}

impl Events {
    /// All that `view` shows.
    pub(super) fn seen(tree: &RegionTree, view: &FlatView) -> Self {
        let mut events = Self::default();
        events.look(tree, view, &[everything()]);
        events
    }

    pub(super) fn eventfds(&self) -> impl Iterator<Item = &FlatEventfd> {
        self.eventfds.iter()
    }

    pub(super) fn coalesced(&self) -> impl Iterator<Item = AddrRange<Gpa>> {
        self.coalesced.iter().copied()
    }

    /// What is in sight after `changes`, if that is anything else. Looks only where they reach.
    pub(super) fn next(
        &self,
        tree: &RegionTree,
        changes: &Changes,
        root: RegionId,
        old: &FlatView,
        new: &FlatView,
    ) -> Option<(Self, EventsChange)> {
        let windows: Vec<_> = match changes.everything {
            true => std::vec![everything()],
            false => changes.windows_of(root).chain(changes.events_of(root)).collect(),
        };
        // A part that a window cuts or touches can come out of it split or joined: look at all of it.
        let near = |range: &AddrRange<Gpa>| {
            let touches = |window: &AddrRange<Gpa>| {
                window.overlaps(*range) || window.touches(*range) || range.touches(*window)
            };
            windows.iter().any(touches)
        };
        let windows: Vec<_> = self.coalesced().filter(near).chain(windows.iter().copied()).collect();
        let outside = |range: AddrRange<Gpa>| !windows.iter().any(|window| window.overlaps(range));
        let mut next = Self {
            eventfds: self.eventfds.iter().filter(|known| outside(known.range)).copied().collect(),
            coalesced: self.coalesced().filter(|&known| outside(known)).collect(),
        };
        next.look(tree, new, &windows);
        if self.eventfds.is_empty() && self.coalesced.is_empty() && next == *self {
            return None;
        }
        let diff = Diff::between(old, new);
        let change = EventsChange {
            eventfds_gone: lacking(&self.eventfds, &next.eventfds),
            eventfds_new: lacking(&next.eventfds, &self.eventfds),
            coalesced_gone: self.coalesced_with(&next, &diff.gone),
            coalesced_new: next.coalesced_with(self, &added(&diff)),
        };
        Some((next, change))
    }

    /// The coalesced parts that `other` lacks, or that come or go with a range.
    fn coalesced_with(&self, other: &Self, ranges: &[&FlatRange]) -> Vec<AddrRange<Gpa>> {
        let moves = |part: AddrRange<Gpa>| {
            let index = ranges.partition_point(|range| range.range.last() < part.first());
            ranges.get(index).is_some_and(|range| range.range.overlaps(part))
        };
        let parts = self.coalesced();
        parts.filter(|part| moves(*part) || other.coalesced.binary_search(part).is_err()).collect()
    }

    /// Adds what `view` shows in `windows`.
    fn look(&mut self, tree: &RegionTree, view: &FlatView, windows: &[AddrRange<Gpa>]) {
        for &window in windows {
            let below = Gpa(window.first().0.saturating_sub(WIDEST - 1));
            let wider = AddrRange::inclusive(below, window.last()).expect("the start only moves down");
            for range in view.overlapping(wider) {
                let region = tree.at(range.region);
                let seen = region.eventfds().iter().filter_map(|eventfd| place(view, range, eventfd));
                self.eventfds.extend(seen.filter(|eventfd| eventfd.range.overlaps(window)));
                let parts = region
                    .coalesced()
                    .iter()
                    .filter_map(|part| shown(range, part.offset, part.offset.saturating_add(part.size - 1)));
                self.coalesced.extend(parts.filter(|part| part.overlaps(window)));
            }
        }
        // Two windows can show the same.
        self.eventfds.sort_unstable();
        self.eventfds.dedup();
        self.coalesced.sort_unstable();
        self.coalesced.dedup();
    }
}

/// Where the bytes `first..=last` of its region show in `range`.
fn shown(range: &FlatRange, first: u64, last: u64) -> Option<AddrRange<Gpa>> {
    let start = range.range.first().0;
    let end = range.offset + (range.range.last().0 - start);
    let (first, last) = (first.max(range.offset), last.min(end));
    (first <= last).then(|| {
        AddrRange::inclusive(Gpa(start + (first - range.offset)), Gpa(start + (last - range.offset)))
    })?
}

/// An eventfd that begins in `range`, if all of its window can be seen.
fn place(view: &FlatView, range: &FlatRange, eventfd: &Eventfd) -> Option<FlatEventfd> {
    let first = shown(range, eventfd.offset, eventfd.offset)?.first();
    let window = AddrRange::new(first, u128::from(eventfd.last() - eventfd.offset) + 1)?;
    let mut seen = range;
    while seen.range.last() < window.last() {
        let next = view.find(seen.range.last().checked_add(1)?)?;
        let goes_on = next.region == seen.region
            && u128::from(seen.offset) + seen.range.bytes() == u128::from(next.offset);
        seen = Some(next).filter(|_| goes_on)?;
    }
    Some(FlatEventfd { range: window, size: eventfd.size, data: eventfd.data, fd: eventfd.fd })
}

/// The ranges that the old view lacks.
fn added<'a>(diff: &Diff<'a>) -> Vec<&'a FlatRange> {
    let added = |news: &News<'a>| match *news {
        News::Added(new) => Some(new),
        News::Relogged { .. } => None,
    };
    diff.news.iter().filter_map(added).collect()
}

/// What is in `these` and not in `others`, both sorted.
fn lacking(these: &[FlatEventfd], others: &[FlatEventfd]) -> Vec<FlatEventfd> {
    these.iter().filter(|this| others.binary_search(this).is_err()).copied().collect()
}

fn everything() -> AddrRange<Gpa> {
    AddrRange::inclusive(Gpa(0), Gpa(u64::MAX)).expect("0 is not above the last address")
}
