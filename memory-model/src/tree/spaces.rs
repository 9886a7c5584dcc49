//! What address spaces ask of the tree they show.

use super::{Changes, Transaction};
use crate::{AddrRange, Gpa, RegionId, RegionTree};

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        !self.everything && self.windows.is_empty() && self.events.is_empty()
    }

    /// Where the view of `root` can differ.
    pub(crate) fn windows_of(&self, root: RegionId) -> impl Iterator<Item = AddrRange<Gpa>> {
        self.windows.iter().filter(move |(of, _)| *of == root).map(|(_, window)| *window)
    }

    /// Where only eventfds or coalesced parts of `root` can differ.
    pub(crate) fn events_of(&self, root: RegionId) -> impl Iterator<Item = AddrRange<Gpa>> {
        self.events.iter().filter(move |(of, _)| *of == root).map(|(_, window)| *window)
    }
}

impl Transaction<'_> {
    pub(crate) fn tree_ref(&self) -> &RegionTree {
        self.tree
    }

    /// What can have changed since the outermost transaction began.
    pub(crate) fn changes(&self) -> &Changes {
        &self.tree.journal.changes
    }
}

impl RegionTree {
    /// Counts an address space that has `id` for its root.
    pub(crate) fn use_as_root(&mut self, id: RegionId) {
        self.at_mut(id).roots += 1;
    }

    /// Ends [`use_as_root`](Self::use_as_root).
    pub(crate) fn release_root(&mut self, id: RegionId) {
        self.at_mut(id).roots -= 1;
    }
}
