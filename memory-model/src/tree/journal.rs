//! How edits are taken back: each writes down its inverse while a transaction is open.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::region::Attributes;
use crate::{AddrRange, Coalesced, Eventfd, Gpa, Region, RegionId, RegionKind, RegionTree};

/// The inverse of an edit.
#[derive(Clone, Debug)]
enum Undo {
    Destroy(RegionId),
    Create(RegionId, Box<Region>),
    Unplace(RegionId),
    Place { child: RegionId, container: RegionId, placed: u64 },
    Attributes(RegionId, Attributes),
    AliasOffset(RegionId, u64),
    Eventfds(RegionId, Vec<Eventfd>),
    Coalesced(RegionId, Vec<Coalesced>),
    GlobalLog(bool),
}

/// Which guest addresses the edits of a transaction can have changed, by root.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    /// Where the view itself can differ.
    pub(crate) windows: Vec<(RegionId, AddrRange<Gpa>)>,
    /// Where only eventfds or coalesced parts can.
    pub(crate) events: Vec<(RegionId, AddrRange<Gpa>)>,
    /// Looking further would have cost more than rendering everything.
    pub(crate) everything: bool,
    /// Regions looked at so far.
    pub(crate) steps: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    undo: Vec<Undo>,
    /// Transactions open; nothing is written down while there is none.
    depth: usize,
    pub(super) changes: Changes,
}

impl Journal {
    pub(super) fn is_open(&self) -> bool {
        self.depth > 0
    }

    pub(super) fn created(&mut self, id: RegionId) {
        self.note(|| Undo::Destroy(id));
    }

    pub(super) fn destroyed(&mut self, id: RegionId, region: Region) {
        self.note(|| Undo::Create(id, Box::new(region)));
    }

    pub(super) fn placed(&mut self, child: RegionId) {
        self.note(|| Undo::Unplace(child));
    }

    pub(super) fn unplaced(&mut self, child: RegionId, container: RegionId, placed: u64) {
        self.note(|| Undo::Place { child, container, placed });
    }

    pub(super) fn attributes(&mut self, id: RegionId, old: Attributes) {
        self.note(|| Undo::Attributes(id, old));
    }

    pub(super) fn alias_moved(&mut self, id: RegionId, old: u64) {
        self.note(|| Undo::AliasOffset(id, old));
    }

    pub(super) fn eventfds(&mut self, id: RegionId, old: Vec<Eventfd>) {
        self.note(|| Undo::Eventfds(id, old));
    }

    pub(super) fn coalesced(&mut self, id: RegionId, old: Vec<Coalesced>) {
        self.note(|| Undo::Coalesced(id, old));
    }

    pub(super) fn global_log(&mut self, old: bool) {
        self.note(|| Undo::GlobalLog(old));
    }

    fn note(&mut self, undo: impl FnOnce() -> Undo) {
        if self.is_open() {
            self.undo.push(undo());
        }
    }
}

/// An open transaction: dropped without [`commit`](Self::commit) it takes every edit back, also when a panic
/// drops it.
pub(crate) struct Transaction<'a> {
    pub(super) tree: &'a mut RegionTree,
    start: usize,
}

impl<'a> Transaction<'a> {
    pub(crate) fn begin(tree: &'a mut RegionTree) -> Self {
        tree.journal.depth += 1;
        let start = tree.journal.undo.len();
        Self { tree, start }
    }

    pub(crate) fn tree(&mut self) -> &mut RegionTree {
        self.tree
    }

    /// Keeps the edits. Those of an inner transaction can still be taken back with the outer one.
    pub(crate) fn commit(mut self) {
        self.start = usize::MAX;
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        self.tree.undo_to(self.start);
        let journal = &mut self.tree.journal;
        journal.depth = journal.depth.saturating_sub(1);
        if !journal.is_open() {
            journal.undo.clear();
            journal.changes = Changes::default();
        }
    }
}

impl RegionTree {
    /// Makes several edits, or none: after an error or a panic in `edit` the tree is as before. They nest:
    /// what an inner one has done is still undone if the outer one fails (rule R20).
    ///
    /// ```
    /// use memory_model::{MemoryError, RegionTree};
    /// let mut tree = RegionTree::new("system", 1 << 64)?;
    /// let bar = tree.reservation("bar", 0x1000)?;
    /// let failed = tree.transaction(|tree| {
    ///     tree.add(tree.root(), 0xe000_0000, bar)?;
    ///     tree.add(tree.root(), 0xf000_0000, bar)
    /// });
    /// assert_eq!(failed.unwrap_err().to_string(), "region bar is already inside system");
    /// assert!(tree.get(bar)?.container().is_none());
    /// # Ok::<(), MemoryError>(())
    /// ```
    pub fn transaction<T, E>(&mut self, edit: impl FnOnce(&mut Self) -> Result<T, E>) -> Result<T, E> {
        let mut transaction = Transaction::begin(self);
        let answer = edit(transaction.tree())?;
        transaction.commit();
        Ok(answer)
    }

    fn undo_to(&mut self, start: usize) {
        if start >= self.journal.undo.len() {
            return;
        }
        let undo = self.journal.undo.split_off(start);
        // Taking back is not to be taken back.
        let depth = core::mem::take(&mut self.journal.depth);
        for step in undo.into_iter().rev() {
            self.undo(step);
        }
        self.journal.depth = depth;
    }

    fn undo(&mut self, step: Undo) {
        match step {
            Undo::Destroy(id) => drop(self.take(id)),
            Undo::Create(id, region) => {
                // What was freed since has been taken back before: the index is the last one freed.
                self.free.pop_if(|index| *index == id.index);
                self.put(id, *region);
            }
            Undo::Unplace(child) => self.unplace(child),
            Undo::Place { child, container, placed } => self.place(child, container, placed),
            Undo::Attributes(id, old) => self.write(id, old),
            Undo::AliasOffset(id, offset) => {
                if let RegionKind::Alias { offset: current, .. } = &mut self.at_mut(id).kind {
                    *current = offset;
                }
            }
            Undo::Eventfds(id, old) => self.at_mut(id).eventfds = old,
            Undo::Coalesced(id, old) => self.at_mut(id).coalesced = old,
            Undo::GlobalLog(old) => self.global_log = old,
        }
    }
}
