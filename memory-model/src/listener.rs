//! Telling listeners how one view became the next.

use alloc::boxed::Box;

use crate::{FlatRange, FlatView};

/// Why a listener refuses a new view.
pub type Refusal = Box<dyn core::error::Error + Send + Sync>;

/// QEMU's `MemoryListener`: hears how a view changes, one transaction at a time.
///
/// A transaction is `begin`, then every range that is gone (`region_del`), ascending, then every range of
/// the new view, ascending: unchanged (`region_nop`) or new (`region_add`), then `commit` (rule R23). A view
/// equal to the old one reaches no listener. The new view is published after all listeners have agreed:
/// a look-up in a callback still sees the old one (rule R26).
pub trait MemoryListener: Send {
    /// Who this is, for error messages.
    fn name(&self) -> &str;
    /// A transaction starts.
    fn begin(&mut self) {}
    /// A range of the old view is gone.
    fn region_del(&mut self, _range: &FlatRange) {}
    /// A range is in both views.
    fn region_nop(&mut self, _range: &FlatRange) {}
    /// A range is new.
    fn region_add(&mut self, _range: &FlatRange) {}
    /// The transaction is complete: act on it, wholly or not at all. After an error the listener stands
    /// where it stood before `begin`, and the update as a whole is undone.
    fn commit(&mut self) -> Result<(), Refusal> {
        Ok(())
    }
}

impl FlatView {
    /// Tells `listener` how `self` becomes `new`; silent if they are equal.
    pub fn announce_change(&self, new: &Self, listener: &mut dyn MemoryListener) -> Result<(), Refusal> {
        if self.same_as(new) {
            return Ok(());
        }
        listener.begin();
        for old in self.ranges().iter().filter(|old| !new.has(old)) {
            listener.region_del(old);
        }
        for range in new.ranges() {
            if self.has(range) { listener.region_nop(range) } else { listener.region_add(range) }
        }
        listener.commit()
    }

    /// Whether both show the same everywhere.
    pub fn same_as(&self, other: &Self) -> bool {
        self.ranges().len() == other.ranges().len()
            && self.ranges().iter().zip(other.ranges()).all(|(one, two)| one.same_as(two))
    }

    fn has(&self, range: &FlatRange) -> bool {
        self.find(range.range.first()).is_some_and(|found| found.same_as(range))
    }
}
