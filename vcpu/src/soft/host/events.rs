//! What the kernel does to a process's pages, and how all of it goes: notify, change, notify.

use std::sync::MutexGuard;

use memory_model::{AddrRange, Hva, MemoryError, PageSize};

use super::block::{Claimed, MappedBlock};
use super::pte::Pte;
use super::record::Record;
use super::sharing::Sharing;
use super::{Host, MmuNotifier, Protection};

/// What becomes of large mappings whose pages an event changes. Those that lie in its range in part are always split.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Large {
    /// They are changed whole.
    Keep,
    /// They become mappings of 4 KiB.
    Split,
}

/// An event under way: the notifier has heard its start, and hears its end when this is dropped.
pub(super) struct Event<'a> {
    host: &'a Host,
    sharing: MutexGuard<'a, Sharing>,
    notifier: &'a mut dyn MmuNotifier,
    /// The pages that are to change.
    range: AddrRange<Hva>,
    /// With all of the large mappings that lie in it in part.
    wide: AddrRange<Hva>,
}

impl Host {
    /// Takes the frames of all pages of the range, as the kernel does when it is short of memory; how many of 4 KiB.
    pub fn swap_out(&self, range: AddrRange<Hva>, notifier: &mut dyn MmuNotifier) -> u64 {
        let mut pages = 0;
        self.change(range, notifier, Large::Split, Pte::is_present, |sharing, block, mapping| {
            pages += 1;
            self.release_frame(sharing, block, mapping.first, mapping.pte);
            mapping.pte.swapped()
        });
        pages
    }

    /// Gives the pages of the range other frames, of the same sizes; how many frames. A mapping for which no frame is
    /// left keeps its own. A shared frame takes all its pages along.
    pub fn migrate(&self, range: AddrRange<Hva>, notifier: &mut dyn MmuNotifier) -> u64 {
        let mut frames = 0;
        let mut shared = Vec::new();
        self.change(range, notifier, Large::Keep, Pte::is_present, |sharing, block, mapping| {
            let (old, size) = (mapping.pte, mapping.pte.size());
            if old.is_shared() {
                shared.push(old.frame());
                return old;
            }
            let Some(frame) = self.zones.allocate(size) else { return old };
            frames += 1;
            let new = old.mapping(frame, size);
            for (index, page) in (0..).zip(mapping.pages()) {
                self.zones.set_record(frame + index, Record::page(block.id(page), new));
                self.release_frame(sharing, block, page, old.further(index));
            }
            new
        });
        shared.sort_unstable();
        shared.dedup();
        frames + shared.into_iter().filter(|&frame| self.migrate_shared(frame, notifier)).count() as u64
    }

    /// Frees the pages of the range (`MADV_DONTNEED`): their bytes are zero afterwards, and they get frames when they are
    /// touched again. An error if a block cannot do that with these pages: then no frame is gone, but those of earlier blocks are
    /// zero.
    pub fn discard(&self, range: AddrRange<Hva>, notifier: &mut dyn MmuNotifier) -> Result<(), MemoryError> {
        loop {
            let mut event = self.begin(range, notifier);
            for (block, pages) in self.parts(event.range) {
                let page = PageSize::Size4K.bytes();
                block.ram.discard(pages.start() * page..(pages.end() + 1) * page)?;
            }
            let wanted = |pte: Pte| !pte.is_untouched();
            let all = event.each(Large::Split, wanted, |sharing, block, mapping| {
                self.release_frame(sharing, block, mapping.first, mapping.pte);
                mapping.pte.untouched()
            });
            if all {
                return Ok(());
            }
        }
    }

    /// Says how the process may use the pages of the range from now on (`mprotect`).
    pub fn protect(&self, range: AddrRange<Hva>, protection: Protection, notifier: &mut dyn MmuNotifier) {
        let wanted = |pte: Pte| pte != pte.protected(protection);
        self.change(range, notifier, Large::Keep, wanted, |_, block, mapping| {
            let new = mapping.pte.protected(protection);
            if new.is_present() && !new.is_shared() {
                for (index, page) in (0..).zip(mapping.pages()) {
                    self.zones.set_record(new.frame() + index, Record::page(block.id(page), new));
                }
            }
            new
        });
    }

    /// The frame of the page breaks (`memory_failure`): it is never used again, and a touch of the page, of each that
    /// shares the frame, is [`HostFault::Poisoned`](ept::mmu::HostFault::Poisoned) until it is discarded. Whether there
    /// was a frame.
    pub fn poison(&self, hva: Hva, notifier: &mut dyn MmuNotifier) -> bool {
        let (mut poisoned, mut shared) = (false, None);
        let range = AddrRange::page_of(hva, PageSize::Size4K);
        self.change(range, notifier, Large::Split, Pte::is_present, |_, _, mapping| {
            if mapping.pte.is_shared() {
                shared = Some(mapping.pte.frame());
                return mapping.pte;
            }
            poisoned = true;
            self.zones.set_record(mapping.pte.frame(), Record::POISONED);
            mapping.pte.poisoned()
        });
        poisoned || shared.is_some_and(|frame| self.poison_shared(frame, notifier))
    }

    /// Changes the mappings in `range` of which `wanted` holds to what `act` says, between the two notifications.
    pub(super) fn change(
        &self,
        range: AddrRange<Hva>,
        notifier: &mut dyn MmuNotifier,
        large: Large,
        wanted: impl Fn(Pte) -> bool,
        mut act: impl FnMut(&mut Sharing, &MappedBlock, &Claimed<'_>) -> Pte,
    ) {
        while !self.begin(range, notifier).each(large, &wanted, &mut act) {}
    }

    fn begin<'a>(&'a self, range: AddrRange<Hva>, notifier: &'a mut dyn MmuNotifier) -> Event<'a> {
        let sharing = self.lock();
        let page = |hva| AddrRange::page_of(hva, PageSize::Size4K);
        let range = page(range.first()).hull(page(range.last()));
        let wide = self.mapping_around(range.first()).hull(self.mapping_around(range.last()));
        notifier.invalidate_range_start(wide);
        Event { host: self, sharing, notifier, range, wide }
    }

    /// The addresses of the mapping around `hva`, of the page of 4 KiB if there is none.
    fn mapping_around(&self, hva: Hva) -> AddrRange<Hva> {
        let mapped = self.pte(hva).filter(|pte| pte.is_present());
        AddrRange::page_of(hva, mapped.map_or(PageSize::Size4K, Pte::size))
    }

    /// The page has its frame no more, or its part of one.
    pub(super) fn release_frame(&self, sharing: &mut Sharing, block: &MappedBlock, page: u64, pte: Pte) {
        if pte.is_shared() {
            self.leave_shared(sharing, pte.frame(), block.id(page));
        } else if pte.is_present() {
            self.zones.free(pte.frame());
        }
    }
}

impl Event<'_> {
    /// Changes each mapping in the range of which `wanted` holds. `false` if a fault has made one meanwhile that reaches
    /// beyond what the notifier knows of: then the event is to be made again.
    fn each(
        &mut self,
        large: Large,
        wanted: impl Fn(Pte) -> bool,
        mut act: impl FnMut(&mut Sharing, &MappedBlock, &Claimed<'_>) -> Pte,
    ) -> bool {
        let (host, mut all) = (self.host, true);
        for (block, pages) in host.parts(self.wide) {
            let (mut page, last) = pages.into_inner();
            while page <= last {
                if !wanted(block.peek(page).idle()) {
                    page += 1;
                    continue;
                }
                let mapping = block.claim_mapping(page);
                let (at, end) = (block.range_of(&mapping.pages()), mapping.pages().end);
                if !self.wide.covers(at) {
                    all = false;
                    mapping.leave();
                } else if mapping.is_large() && (large == Large::Split || !self.range.covers(at)) {
                    let small = mapping.pte.small();
                    mapping.put(small);
                    // Its pages are looked at one by one now.
                    continue;
                } else if self.range.covers(at) && wanted(mapping.pte) {
                    let new = act(&mut self.sharing, block, &mapping);
                    mapping.put(new);
                } else {
                    mapping.leave();
                }
                page = end;
            }
        }
        all
    }
}

impl Drop for Event<'_> {
    fn drop(&mut self) {
        self.notifier.invalidate_range_end(self.wide);
    }
}
