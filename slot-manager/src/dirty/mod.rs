//! Dirty logs: which pages the guest wrote, by whichever means its kernel has.
//!
//! ```text
//! DirtyLog (mod.rs)   what a kernel offers: bitmaps, bitmaps cleared by hand, rings
//! unread.rs           the bits read from it and not yet handed out, slot by slot
//! pages.rs            what is handed out: slots with a bit for each page
//! reaper.rs           a thread that empties rings before they are full
//! ```

mod pages;
mod reaper;
mod unread;

pub use pages::{DirtyPages, SlotPages};
pub use reaper::Reaper;
pub(crate) use unread::{Part, Unread};

use crate::{Errno, SlotError, SlotId};

/// How a kernel tells which pages were written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DirtyMethod {
    /// A bitmap for each slot. Reading it clears all of it, and protects the pages found.
    #[default]
    Bitmap,
    /// A bitmap for each slot that reading leaves as it is; parts are cleared, and their pages protected,
    /// when they are needed (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`).
    ManualProtect {
        /// A log begins with all pages dirty and none protected: starting costs next to nothing (rule D2).
        initially_set: bool,
    },
    /// A ring of entries for each vCPU (`KVM_CAP_DIRTY_LOG_RING_ACQ_REL`). A vCPU whose ring is full exits
    /// until the ring is reaped. Never together with manual protection, which would lose pages (rule D6).
    Ring {
        /// The size of each ring: a power of two, a page at least.
        bytes: u32,
    },
}

impl DirtyMethod {
    /// Whether there is anything to do to log by `wanted`, where `self` is in force.
    pub(crate) fn gives_way_to(self, wanted: Self) -> Result<bool, SlotError> {
        match self {
            Self::Bitmap => Ok(wanted != self),
            present if present == wanted => Ok(false),
            present => Err(SlotError::DirtyMethodFixed { present, wanted }),
        }
    }
}

/// A kernel's dirty logs, shaped as its ioctls are. [`SlotManager`](crate::SlotManager) makes one interface of them.
pub trait DirtyLog {
    /// Chooses another way than [`DirtyMethod::Bitmap`]: once, before the first log, and for rings before
    /// the first vCPU. After an error nothing has changed.
    fn set_dirty_method(&mut self, wanted: DirtyMethod) -> Result<(), SlotError>;

    /// `KVM_GET_DIRTY_LOG`: fills `bitmap`, whatever it held, with a bit for each page of the slot, rounded up
    /// to 64 (rule D1).
    fn get_dirty_log(&mut self, slot: SlotId, bitmap: &mut Vec<u64>) -> Result<(), Errno>;

    /// `KVM_CLEAR_DIRTY_LOG`: clears the bits of `num_pages` pages from `first_page` on that are set in
    /// `bitmap`.
    fn clear_dirty_log(
        &mut self,
        slot: SlotId,
        first_page: u64,
        num_pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno>;

    /// Takes all entries out of all rings: slot, and page in the slot. They are protected again before this
    /// returns, so that what is read of them afterwards is not older than the next entry (rule D7). `EOVERFLOW`
    /// if a ring has no room left though the kernel keeps some back: pages may be lost.
    fn reap_dirty_rings(&mut self, found: &mut dyn FnMut(SlotId, u64)) -> Result<(), Errno>;
}
