//! An entry of the host's own page tables, in a word.

use ept::mmu::{HostFault, HostFrame};
use memory_model::{Hpa, PageSize};

use super::Protection;

/// What the process has at one page of 4 KiB. A larger mapping has an entry for each 4 KiB of it.
///
/// | bits | meaning |
/// |---|---|
/// | 0 | a frame is there |
/// | 2:1 | size of the mapping: 0 4K, 1 2M, 2 1G |
/// | 3 | somebody changes the entry right now |
/// | 4, 5 | the process may not write, may not reach it |
/// | 6 | the frame is shared until it is written |
/// | 7, 8 | there is no frame: swapped out; broken |
/// | 51:12 | the frame |
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Pte(u64);

const PRESENT: u64 = 1 << 0;
const SIZE: u64 = 0b11 << 1;
const BUSY: u64 = 1 << 3;
const READ_ONLY: u64 = 1 << 4;
const NO_ACCESS: u64 = 1 << 5;
const SHARED: u64 = 1 << 6;
const SWAPPED: u64 = 1 << 7;
const POISONED: u64 = 1 << 8;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const RIGHTS: u64 = READ_ONLY | NO_ACCESS;
const FRAME: u32 = PageSize::Size4K.shift();

impl Pte {
    pub(super) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    #[inline]
    pub(super) fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    #[inline]
    pub(super) fn is_busy(self) -> bool {
        self.0 & BUSY != 0
    }

    pub(super) fn is_shared(self) -> bool {
        self.0 & SHARED != 0
    }

    pub(super) fn is_swapped(self) -> bool {
        self.0 & SWAPPED != 0
    }

    pub(super) fn is_poisoned(self) -> bool {
        self.0 & POISONED != 0
    }

    pub(super) fn is_read_only(self) -> bool {
        self.0 & READ_ONLY != 0
    }

    pub(super) fn is_no_access(self) -> bool {
        self.0 & NO_ACCESS != 0
    }

    /// Whether nothing is there but rights: a page of any size may be mapped.
    pub(super) fn is_untouched(self) -> bool {
        self.0 & !RIGHTS == 0
    }

    /// Size of the mapping.
    #[inline]
    pub(super) fn size(self) -> PageSize {
        match self.0 & SIZE {
            0 => PageSize::Size4K,
            0b010 => PageSize::Size2M,
            _ => PageSize::Size1G,
        }
    }

    /// The number of its frame, or of its part of one.
    #[inline]
    pub(super) fn frame(self) -> u64 {
        (self.0 & ADDRESS) >> FRAME
    }

    pub(super) fn hpa(self) -> Hpa {
        Hpa(self.0 & ADDRESS)
    }

    pub(super) fn busy(self) -> Self {
        Self(self.0 | BUSY)
    }

    pub(super) fn idle(self) -> Self {
        Self(self.0 & !BUSY)
    }

    /// The rights alone: nothing was ever there.
    pub(super) fn untouched(self) -> Self {
        Self(self.0 & RIGHTS)
    }

    pub(super) fn swapped(self) -> Self {
        Self(self.0 & RIGHTS | SWAPPED)
    }

    pub(super) fn poisoned(self) -> Self {
        Self(self.0 & RIGHTS | POISONED)
    }

    /// With this frame, which is no other page's.
    pub(super) fn mapping(self, frame: u64, size: PageSize) -> Self {
        Self(self.0 & RIGHTS | PRESENT | u64::from(size.level() - 1) << 1 | frame << FRAME)
    }

    /// With this frame, which is other pages' too.
    pub(super) fn sharing(self, frame: u64) -> Self {
        Self(self.mapping(frame, PageSize::Size4K).0 | SHARED)
    }

    /// The same frame, as part of no larger mapping.
    pub(super) fn small(self) -> Self {
        Self(self.0 & !SIZE)
    }

    /// The entry `pages` further on in the same mapping.
    pub(super) fn further(self, pages: u64) -> Self {
        Self(if self.is_present() { self.0 + (pages << FRAME) } else { self.0 })
    }

    pub(super) fn protected(self, protection: Protection) -> Self {
        let rights = match protection {
            Protection::ReadWrite => 0,
            Protection::ReadOnly => READ_ONLY,
            Protection::None => NO_ACCESS,
        };
        Self(self.0 & !RIGHTS | rights)
    }

    /// What the entry says to an access; `None` if a frame must be found first.
    #[inline]
    pub(super) fn answer(self, write: bool) -> Option<Result<HostFrame, HostFault>> {
        let denied = if write { RIGHTS } else { NO_ACCESS };
        if self.0 & (PRESENT | denied | POISONED | SHARED) == PRESENT {
            let writable = self.0 & READ_ONLY == 0;
            return Some(Ok(HostFrame { hpa: self.hpa(), size: self.size(), writable }));
        }
        if self.is_poisoned() {
            return Some(Err(HostFault::Poisoned));
        }
        if self.0 & denied != 0 {
            return Some(Err(HostFault::Unmapped));
        }
        if !self.is_present() {
            return None;
        }
        // What is left is shared.
        Some(if write {
            Err(HostFault::CopyOnWrite)
        } else {
            Ok(HostFrame { hpa: self.hpa(), size: self.size(), writable: false })
        })
    }
}
