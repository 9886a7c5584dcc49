//! The simulated host: one process's memory, and the frames behind it (Linux's mm).
//!
//! A page of the process has a frame from its first touch on ([`HostFrames::host_frame`](ept::mmu::HostFrames)). Frames have
//! 4 KiB, 2 MiB or 1 GiB; their numbers are scattered over zones, so that no address can be right by accident. What the
//! kernel does to a process's memory are events: each tells a [`MmuNotifier`] before and after.
//!
//! | event | Linux | frame | bytes |
//! |---|---|---|---|
//! | [`swap_out`](Host::swap_out) | reclaim | gone, a new one when touched | kept |
//! | [`migrate`](Host::migrate) | compaction, NUMA balancing | another one | kept |
//! | [`merge`](Host::merge) | KSM | one for two pages, read-only | kept |
//! | [`break_cow`](Host::break_cow) | a write to a merged page | one of its own | kept |
//! | [`collapse`](Host::collapse) | khugepaged | 2 MiB for 512 pages | kept |
//! | [`split`](Host::split) | `split_huge_pmd` | the same, mapped in 4 KiB | kept |
//! | [`discard`](Host::discard) | `MADV_DONTNEED` | gone | zero |
//! | [`protect`](Host::protect) | `mprotect` | the same | kept |
//! | [`poison`](Host::poison) | memory failure | never used again | lost |
//!
//! # Bytes
//!
//! The bytes of a page are the RAM block's own, so that HVA and HPA reach the same memory, and nothing is copied when a
//! frame changes. A table's frame has bytes of its own. So has one that is shared: a copy of what all its pages hold,
//! which nobody can write through the frame. The process's own writes by HVA must do what its page fault would do:
//! [`break_cow`](Host::break_cow) first. [`check`](Host::check) finds out who does not.
//!
//! An access to a frame that is free, to one that may not be reached, and a write to one that may not be written is an
//! error: who still uses an old mapping is seen at once.
//!
//! # Locks
//!
//! Faults, accesses and tables need no lock: a fault claims the entries it fills by a bit in them. Events come one at a
//! time, under a lock that is held while notifiers are called (Linux's `mmap_lock`); an MMU's own lock comes after it.

mod block;
mod check;
mod chunked;
mod events;
mod fault;
mod memory;
mod notifier;
mod pte;
mod record;
mod sharing;
mod sizes;
mod zone;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use memory_model::{AddrRange, Hpa, Hva, PageSize, Pages, RamBlock};

use self::block::MappedBlock;
use self::chunked::Chunked;
use self::memory::TableBytes;
use self::pte::Pte;
use self::record::PageId;
use self::sharing::Sharing;
use self::zone::Zones;

pub use self::check::{Counts, Inconsistent, Owner};
pub use self::notifier::MmuNotifier;
pub use memory_model::Protection;

/// 64 GiB in frames of each size.
const FRAMES: [u64; 3] = [1 << 24, 1 << 15, 1 << 6];

/// One process's memory, and the host's frames. See the [module](self).
pub struct Host {
    /// What the process has mapped, in the order in which it did.
    blocks: Chunked<OnceLock<MappedBlock>, 8>,
    zones: Zones,
    bytes: TableBytes,
    /// Held by events. What they alone need is inside.
    events: Mutex<Sharing>,
}

impl Default for Host {
    fn default() -> Self {
        Self::with_frames(FRAMES)
    }
}

impl Host {
    /// A host with so many frames of 4 KiB, of 2 MiB and of 1 GiB (at most 256 GiB of each size). Frames that were never
    /// used are given out first.
    pub fn with_frames(frames: [u64; 3]) -> Self {
        Self {
            blocks: Chunked::default(),
            zones: Zones::new(frames),
            bytes: TableBytes::default(),
            events: Mutex::default(),
        }
    }

    /// Where all frames are that were ever used.
    pub fn span(&self) -> AddrRange<Hpa> {
        self.zones.span()
    }

    /// Makes the pages of a block known: of the size that was asked for when it was made.
    pub fn map(&self, block: &Arc<RamBlock>) {
        self.map_pages(block, Pages::Usual);
    }

    /// The same with pages of another size: 2 MiB ([`Pages::Thp`] too) or 1 GiB, where
    /// addresses and length allow it, and smaller ones elsewhere. A block that is known already stays as it is.
    pub fn map_pages(&self, block: &Arc<RamBlock>, pages: Pages) {
        let largest = match pages {
            Pages::Usual if block.wants_thp() => PageSize::Size2M,
            Pages::Usual => block.page_size(),
            Pages::Small => PageSize::Size4K,
            Pages::Thp | Pages::Huge2M => PageSize::Size2M,
            Pages::Huge1G => PageSize::Size1G,
        };
        let _one_at_a_time = self.lock();
        if !self.mapped().any(|known| Arc::ptr_eq(&known.ram, block)) {
            let number = self.mapped().count() as u32;
            self.blocks.at(number.into()).get_or_init(|| MappedBlock::new(block.clone(), number, largest));
        }
    }

    /// The frame behind the page that holds `hva`, with the offset inside the page, if it has one now.
    pub fn frame_of(&self, hva: Hva) -> Option<Hpa> {
        let pte = self.pte(hva).filter(|pte| pte.is_present())?;
        pte.hpa().checked_add(hva.page_offset(PageSize::Size4K))
    }

    /// The host's entry for `hva`, if the process has something mapped there.
    fn pte(&self, hva: Hva) -> Option<Pte> {
        self.find(hva).map(|(block, page)| block.peek(page))
    }

    /// The block that holds `hva`, and which page of it that is.
    #[inline]
    fn find(&self, hva: Hva) -> Option<(&MappedBlock, u64)> {
        self.mapped().find_map(|block| Some((block, block.page_at(hva)?)))
    }

    #[inline]
    fn mapped(&self) -> impl Iterator<Item = &MappedBlock> {
        (0..).map_while(|number| self.blocks.get(number)?.get())
    }

    /// The block of a page.
    #[inline]
    fn block(&self, page: PageId) -> Option<&MappedBlock> {
        self.blocks.get(page.block.into())?.get()
    }

    /// The parts of blocks that `range` touches, as pages.
    fn parts(
        &self,
        range: AddrRange<Hva>,
    ) -> impl Iterator<Item = (&MappedBlock, std::ops::RangeInclusive<u64>)> {
        self.mapped().filter_map(move |block| {
            let inside = block.range()?.intersection(range)?;
            let (first, last) = (block.page_at(inside.first())?, block.pages() - 1);
            Some((block, first..=block.page_at(inside.last()).unwrap_or(last)))
        })
    }

    fn lock(&self) -> MutexGuard<'_, Sharing> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
