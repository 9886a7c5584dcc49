//! From the tree to ranges.

use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec::Vec;

use super::FlatRange;
use crate::{AddrRange, DirtyClients, Gpa, MemoryError, Region, RegionId, RegionKind, RegionTree};

/// Regions that one render visits at most. Aliases of containers of aliases can show a region in very many
/// places; a machine needs no more than a few per region.
const MAX_VISITS: usize = 1 << 22;

/// The ranges that `root` shows in `windows`, ascending and merged. The windows ascend and do not overlap.
pub(super) fn render(
    tree: &RegionTree,
    root: RegionId,
    windows: &[AddrRange<Gpa>],
) -> Result<Vec<FlatRange>, MemoryError> {
    let mut renderer = Renderer {
        tree,
        covered: Covered::outside(windows),
        pieces: Vec::new(),
        stack: Vec::new(),
        visits: 0,
    };
    if let (Some(first), Some(last)) = (windows.first(), windows.last()) {
        let hull = Visit {
            id: root,
            start: 0,
            first: first.first().0,
            last: last.last().0.min(tree.get(root)?.last()),
            inherited: Inherited::default(),
            next_child: 0,
        };
        renderer.run(hull)?;
    }
    let mut pieces = renderer.pieces;
    pieces.sort_unstable_by_key(|piece| piece.range.first());
    let mut merged: Vec<FlatRange> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        append(&mut merged, piece.into_range(tree));
    }
    Ok(merged)
}

/// Adds a range behind the last one, or to it (rule R17).
pub(super) fn append(ranges: &mut Vec<FlatRange>, next: FlatRange) {
    match ranges.last_mut() {
        Some(last) if last.continues_in(&next) => {
            last.range = AddrRange::inclusive(last.range.first(), next.range.last())
                .expect("the next range lies behind the last one");
        }
        _ => ranges.push(next),
    }
}

/// What is handed down from containers and aliases (rule R13).
#[derive(Clone, Copy, Default)]
struct Inherited {
    readonly: bool,
    nonvolatile: bool,
    unmergeable: bool,
}

impl Inherited {
    fn with(self, region: &Region) -> Self {
        Self {
            readonly: self.readonly || region.readonly(),
            nonvolatile: self.nonvolatile || region.nonvolatile(),
            unmergeable: self.unmergeable || region.unmergeable(),
        }
    }
}

/// A region on the way down.
#[derive(Clone, Copy)]
struct Visit {
    id: RegionId,
    /// The guest address of the region's first byte, modulo 2^64: an alias can begin before address 0.
    start: u64,
    /// The bytes of the region, counted from its start, that lie in the window. As guest addresses they do
    /// not wrap, for every step down clips them.
    first: u64,
    last: u64,
    /// From everything above.
    inherited: Inherited,
    next_child: usize,
}

/// What a region shows, before neighbours are joined.
#[derive(Clone, Copy)]
struct Piece {
    range: AddrRange<Gpa>,
    region: RegionId,
    offset: u64,
    inherited: Inherited,
}

impl Piece {
    fn into_range(self, tree: &RegionTree) -> FlatRange {
        let region = tree.at(self.region);
        let logged = if tree.global_log() { region.kind.logged_globally() } else { DirtyClients::empty() };
        FlatRange {
            range: self.range,
            region: self.region,
            name: region.name().clone(),
            kind: region.kind().clone(),
            offset: self.offset,
            readonly: self.inherited.readonly,
            nonvolatile: self.inherited.nonvolatile,
            unmergeable: self.inherited.unmergeable,
            romd: region.romd() && matches!(region.kind, RegionKind::RomDevice { .. }),
            dirty_mask: region.dirty_log() | logged,
        }
    }
}

/// Walks down in the order of sight and lets each region take what is still free: first come, first seen.
struct Renderer<'a> {
    tree: &'a RegionTree,
    covered: Covered,
    pieces: Vec<Piece>,
    /// Regions whose children are being visited. A stack of our own, as a tree can be deeper than a thread's.
    stack: Vec<Visit>,
    visits: usize,
}

impl Renderer<'_> {
    fn run(&mut self, root: Visit) -> Result<(), MemoryError> {
        self.enter(root);
        while let Some(top) = self.stack.last_mut() {
            if self.visits > MAX_VISITS {
                let root = self.tree.get(root.id)?.name().to_string();
                return Err(MemoryError::TooManyAliases { root, visits: MAX_VISITS });
            }
            let parent = *top;
            let region = self.tree.at(parent.id);
            let rest = &region.children[parent.next_child..];
            match rest.iter().position(|child| child.first <= parent.last && parent.first <= child.last) {
                Some(skipped) => {
                    let child = rest[skipped];
                    top.next_child += skipped + 1;
                    self.enter(Visit {
                        id: child.id,
                        start: parent.start.wrapping_add(child.first),
                        first: parent.first.max(child.first) - child.first,
                        last: parent.last.min(child.last) - child.first,
                        inherited: parent.inherited,
                        next_child: 0,
                    });
                }
                None => {
                    self.stack.pop();
                    if region.kind().terminates() {
                        self.paint(parent);
                    }
                }
            }
        }
        Ok(())
    }

    /// Follows aliases down to what they show, and stacks that or lets it take what is free.
    fn enter(&mut self, mut visit: Visit) {
        loop {
            self.visits += 1;
            let region = self.tree.at(visit.id);
            if !region.enabled() || visit.first > visit.last {
                return;
            }
            visit.inherited = visit.inherited.with(region);
            match *region.kind() {
                RegionKind::Alias { target, offset } => {
                    // The target's own place is ignored (rule R3).
                    let Some(first) = visit.first.checked_add(offset) else { return };
                    visit.id = target;
                    visit.start = visit.start.wrapping_sub(offset);
                    visit.first = first;
                    visit.last = visit.last.saturating_add(offset).min(self.tree.at(target).last());
                }
                _ if !region.children.is_empty() => {
                    let (first, last) =
                        (visit.start.wrapping_add(visit.first), visit.start.wrapping_add(visit.last));
                    if !self.covered.covers(first, last) {
                        self.stack.push(visit);
                    }
                    return;
                }
                ref kind => {
                    if kind.terminates() {
                        self.paint(visit);
                    }
                    return;
                }
            }
        }
    }

    /// Lets a region take what is free.
    fn paint(&mut self, visit: Visit) {
        let Visit { id, start, inherited, .. } = visit;
        let (first, last) = (start.wrapping_add(visit.first), start.wrapping_add(visit.last));
        let pieces = &mut self.pieces;
        self.covered.cover(first, last, |range| {
            let offset = range.first().0.wrapping_sub(start);
            pieces.push(Piece { range, region: id, offset, inherited });
        });
    }
}

/// The guest addresses that are taken: first to last of each run, no two of which touch.
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Everything but `windows`, which ascend and do not overlap.
    fn outside(windows: &[AddrRange<Gpa>]) -> Self {
        let mut runs = BTreeMap::new();
        let mut next = Some(0);
        for window in windows {
            if let (Some(first), Some(last)) = (next, window.first().0.checked_sub(1))
                && first <= last
            {
                runs.insert(first, last);
            }
            next = window.last().0.checked_add(1);
        }
        if let Some(first) = next.filter(|_| !windows.is_empty()) {
            runs.insert(first, u64::MAX);
        }
        Self(runs)
    }

    fn covers(&self, first: u64, last: u64) -> bool {
        self.0.range(..=first).next_back().is_some_and(|(_, &end)| end >= last)
    }

    /// Takes `first..=last`; `gap` gets what was free of it.
    fn cover(&mut self, first: u64, last: u64, mut gap: impl FnMut(AddrRange<Gpa>)) {
        let mut free = |first, last| {
            if let Some(range) = AddrRange::inclusive(Gpa(first), Gpa(last)) {
                gap(range);
            }
        };
        let (mut run_first, mut run_last) = (first, last);
        // The run to be joined reaches from one address before to one after.
        let reach = last.saturating_add(1);
        let mut open_to = Some(last);
        let mut joined = Vec::new();
        for (&start, &end) in self.0.range(..=reach).rev() {
            if end < first.saturating_sub(1) {
                break;
            }
            joined.push(start);
            run_first = run_first.min(start);
            run_last = run_last.max(end);
            if start > last || end < first {
                continue;
            }
            if let (Some(to), Some(from)) = (open_to, end.checked_add(1))
                && from <= to
            {
                free(from, to);
            }
            open_to = start.checked_sub(1).filter(|&to| to >= first);
            if open_to.is_none() {
                break;
            }
        }
        if let Some(to) = open_to {
            free(first, to);
        }
        for start in joined {
            self.0.remove(&start);
        }
        self.0.insert(run_first, run_last);
    }
}
