//! From an address of the process to a frame.

use std::sync::atomic::Ordering;

use ept::mmu::{HostFault, HostFrame, HostFrames};
use memory_model::{Hva, PageSize};

use super::Host;
use super::block::{MappedBlock, Patience};
use super::pte::Pte;
use super::record::Record;

impl HostFrames for Host {
    /// A page that has a frame costs a look at its entry. A shared one that is to be written is
    /// [`HostFault::CopyOnWrite`]: [`break_cow`](Host::break_cow) helps. Where no frame is left nothing is mapped, either.
    #[inline]
    fn host_frame(&self, hva: Hva, write: bool) -> Result<HostFrame, HostFault> {
        let (block, page) = self.find(hva).ok_or(HostFault::Unmapped)?;
        let entry = block.entry(page);
        let mut patience = Patience::default();
        loop {
            let pte = Pte::from_bits(entry.load(Ordering::Acquire));
            if pte.is_busy() {
                patience.wait();
                continue;
            }
            match pte.answer(write) {
                Some(answer) => return answer,
                None => self.fault_in(block, page)?,
            }
        }
    }

    #[inline]
    fn present_frame(&self, hva: Hva, write: bool) -> Option<HostFrame> {
        let (block, page) = self.find(hva)?;
        let pte = Some(block.peek(page)).filter(|pte| !pte.is_busy())?;
        pte.answer(write)?.ok()
    }

    fn allocate_table(&self) -> Option<u64> {
        self.allocate_table_frame()
    }

    fn free_table(&self, frame: u64) {
        self.retire_table_frame(frame);
    }
}

impl Host {
    /// Gives a page without a frame the largest one that fits (`handle_mm_fault`). An error if no frame is left.
    fn fault_in(&self, block: &MappedBlock, page: u64) -> Result<(), HostFault> {
        for size in [PageSize::Size1G, PageSize::Size2M] {
            if size <= block.largest && self.fault_in_large(block, page, size) {
                return Ok(());
            }
        }
        let pte = block.claim(page);
        // Another thread may have been faster, or an event may have changed what it is.
        if pte.is_present() || pte.is_poisoned() {
            block.put(page, pte);
            return Ok(());
        }
        let Some(frame) = self.zones.allocate(PageSize::Size4K) else {
            block.put(page, pte);
            return Err(HostFault::Unmapped);
        };
        let pte = pte.mapping(frame, PageSize::Size4K);
        self.zones.set_record(frame, Record::page(block.id(page), pte));
        block.put(page, pte);
        Ok(())
    }

    /// The same with a page of 2 MiB or 1 GiB, if nothing of what it would hold was touched before.
    fn fault_in_large(&self, block: &MappedBlock, page: u64, size: PageSize) -> bool {
        let Some(pages) = block.around(page, size).filter(|pages| pages.end <= block.pages()) else {
            return false;
        };
        let rights = block.peek(page);
        let fit = |pte: Pte| pte.is_untouched() && pte == rights;
        // Mostly the first look says no.
        if !pages.clone().all(|page| fit(block.peek(page))) || !block.claim_run(pages.clone(), fit) {
            return false;
        }
        let frame = self.zones.allocate(size);
        match frame {
            Some(frame) => self.map_large(block, pages, rights, frame, size),
            None => pages.for_each(|page| block.put(page, rights)),
        }
        frame.is_some()
    }

    /// Ends the claims of `pages`: they are one mapping of `frame` now.
    pub(super) fn map_large(
        &self,
        block: &MappedBlock,
        pages: std::ops::Range<u64>,
        rights: Pte,
        frame: u64,
        size: PageSize,
    ) {
        let pte = rights.mapping(frame, size);
        for (frame, page) in (frame..).zip(pages.clone()) {
            self.zones.set_record(frame, Record::page(block.id(page), pte));
        }
        for (index, page) in (0..).zip(pages) {
            block.put(page, pte.further(index));
        }
    }
}
