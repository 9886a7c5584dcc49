//! Those who hear how a view changes.

use alloc::boxed::Box;

use crate::{AddrRange, DirtyClients, FlatEventfd, FlatRange, Gpa};

/// Why a listener refuses a new view.
pub type Refusal = Box<dyn core::error::Error + Send + Sync>;

/// How a listener brings dirty bits up to date: in one of two ways, not both (rule R32).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DirtySync {
    /// It has none.
    None,
    /// By [`MemoryListener::log_sync`], range by range.
    Ranges,
    /// By [`MemoryListener::log_sync_global`], all at once.
    Global,
}

/// QEMU's `MemoryListener`: hears how a view changes, one transaction at a time. What a listener does not
/// care for it leaves out.
///
/// A transaction is `begin`, then every range that is gone (`region_del`), ascending, then every range of
/// the new view, ascending: unchanged (`region_nop`, then `log_start` or `log_stop` if its loggers differ) or
/// new (`region_add`), then `commit` (rule R23). A view equal to the old one reaches no listener. The new
/// view is published after all listeners have agreed: a look-up in a callback still sees the old one (rule
/// R26). Eventfds are told after that, outside any transaction, as they can change alone (rule R21).
///
/// Of several listeners the one with the lowest priority is first where something comes, and last where
/// something goes (rule R24).
///
/// A callback must not update the space it hears of: that gives
/// [`MemoryError::NestedUpdate`](crate::MemoryError::NestedUpdate).
#[expect(unused_variables, reason = "the names of the parameters are part of the documentation")]
pub trait MemoryListener: Send {
    /// Who this is, for error messages.
    fn name(&self) -> &str;

    /// Whether `region_nop` is of interest. Where nobody asks for it, an update costs what it changes, not
    /// what there is. Asked anew in each transaction.
    fn wants_nops(&self) -> bool {
        true
    }

    /// A transaction starts.
    fn begin(&mut self) {}

    /// A range of the old view is gone.
    fn region_del(&mut self, range: &FlatRange) {}

    /// A range is in both views.
    fn region_nop(&mut self, range: &FlatRange) {}

    /// A range is new. [`FlatRange::dirty_mask`] tells who logs it from the start.
    fn region_add(&mut self, range: &FlatRange) {}

    /// The transaction is complete: act on it, wholly or not at all. After an error the listener stands
    /// where it stood before `begin`, and the update as a whole is undone.
    fn commit(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    /// Somebody else has refused: forget what was told since `begin`. A listener that has already committed
    /// is told the way back in a transaction of its own instead.
    fn abort(&mut self) {}

    /// Some client logs writes to a range that did not do so before.
    fn log_start(&mut self, range: &FlatRange, old: DirtyClients, new: DirtyClients) {}

    /// Some client no longer logs writes to a range.
    fn log_stop(&mut self, range: &FlatRange, old: DirtyClients, new: DirtyClients) {}

    /// How dirty bits get from this listener to the blocks.
    fn dirty_sync(&self) -> DirtySync {
        DirtySync::None
    }

    /// Bring the dirty bits of a range up to date.
    fn log_sync(&mut self, range: &FlatRange) {}

    /// Bring all dirty bits up to date; `last_stage` if the guest will not run before they are used.
    fn log_sync_global(&mut self, last_stage: bool) {}

    /// Dirty bits of a part of a range were taken: log its next writes.
    fn log_clear(&mut self, part: &FlatRange) {}

    /// Everything that can be migrated is logged from now on (rule R31).
    fn log_global_start(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    /// Logging everything has ended.
    fn log_global_stop(&mut self) {}

    /// An eventfd is in sight.
    fn eventfd_add(&mut self, eventfd: &FlatEventfd) {}

    /// An eventfd is out of sight.
    fn eventfd_del(&mut self, eventfd: &FlatEventfd) {}

    /// The writes to some addresses may be collected.
    fn coalesced_add(&mut self, range: AddrRange<Gpa>) {}

    /// The writes to some addresses must be delivered at once.
    fn coalesced_del(&mut self, range: AddrRange<Gpa>) {}

    /// Deliver the writes collected so far: the regions are about to change (rule R20).
    fn flush_coalesced(&mut self) {}
}
