//! The two sides of a guest's memory.

use std::fmt;

/// Where a page of a slot with a private half lies: in memory that this process shares with the guest, or in the
/// block's `guest_memfd`, which only the guest reaches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// In the block.
    Shared,
    /// In the block's `guest_memfd`.
    Private,
}

impl Side {
    /// The one that it is not.
    pub fn other(self) -> Self {
        match self {
            Self::Shared => Self::Private,
            Self::Private => Self::Shared,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shared => "shared",
            Self::Private => "private",
        })
    }
}
