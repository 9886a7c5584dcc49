//! Who wants to know which pages were written, and the bits kept for them (rule R41).

mod bitmap;
#[cfg(feature = "host")]
mod block;
mod snapshot;

use core::fmt;
use core::sync::atomic;

pub use bitmap::DirtyBitmap;
#[cfg(feature = "host")]
pub(super) use block::DirtyMemory;
pub use snapshot::DirtySnapshot;

bitflags::bitflags! {
    /// Those who ask for dirty pages (QEMU's `DIRTY_MEMORY_*`). Each has bits of its own: clearing one
    /// client's leaves the others'.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct DirtyClients: u8 {
        /// A display that redraws what changed.
        const VGA = 1 << 0;
        /// Translated code that must go when its bytes change.
        const CODE = 1 << 1;
        /// Live migration.
        const MIGRATION = 1 << 2;
    }
}

impl fmt::Display for DirtyClients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("none") } else { bitflags::parser::to_writer(self, f) }
    }
}
