//! What a region asks of those who run the guest: eventfds, and writes that may be collected.

use crate::{AddrRange, Gpa};

/// A write that signals an eventfd instead of leaving the guest (QEMU's `MemoryRegionIoeventfd`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Eventfd {
    /// Bytes from the region's start.
    pub offset: u64,
    /// The width of the write: 1, 2, 4 or 8 bytes, or 0 for any.
    pub size: u8,
    /// The value written, if only that one signals.
    pub data: Option<u64>,
    /// The raw file descriptor. Whoever adds it keeps it open until it is taken away.
    pub fd: i32,
}

impl Eventfd {
    /// The last byte of its window, counted from the region's start; a width of 0 has a window of one byte.
    pub(crate) fn last(&self) -> u64 {
        self.offset.saturating_add(u64::from(self.size.max(1)) - 1)
    }
}

/// An [`Eventfd`] where the guest sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlatEventfd {
    /// The addresses written; one byte if any width will do.
    pub range: AddrRange<Gpa>,
    /// The width of the write, 0 for any.
    pub size: u8,
    /// The value written, if only that one signals.
    pub data: Option<u64>,
    /// The raw file descriptor.
    pub fd: i32,
}

/// A part of a device whose writes may be collected and delivered later (QEMU's `CoalescedMemoryRange`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Coalesced {
    /// Bytes from the region's start.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}
