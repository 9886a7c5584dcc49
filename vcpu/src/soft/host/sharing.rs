//! Pages with the same bytes share a frame until one of them is written (KSM).

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use ept::mmu::HostFault;
use memory_model::{AddrRange, Hva, PageSize};

use super::block::MappedBlock;
use super::pte::Pte;
use super::record::{PageId, Record, Use};
use super::{Host, MmuNotifier};

const FRAME: usize = PageSize::Size4K.bytes() as usize;

/// The shared frames, each with its pages: what a frame's record has no room for.
#[derive(Default)]
pub(super) struct Sharing(HashMap<u64, Vec<PageId>>);

impl Sharing {
    /// The pages of a shared frame.
    pub(super) fn pages(&self, frame: u64) -> &[PageId] {
        self.0.get(&frame).map_or(&[], Vec::as_slice)
    }

    fn join(&mut self, frame: u64, page: PageId) {
        self.0.entry(frame).or_default().push(page);
    }
}

impl Host {
    /// Lets two pages with the same bytes share a frame, read-only: the first one's, or the one that either shares with
    /// others already. Whether they do now; not if one has no frame or may not be reached, or if the bytes differ. Each
    /// page whose frame or rights change is notified, a large mapping around it as [`split`](Self::split) does.
    pub fn merge(&self, one: Hva, other: Hva, notifier: &mut dyn MmuNotifier) -> bool {
        let (Some(one), Some(other)) = (self.find(one), self.find(other)) else { return false };
        if one.0.id(one.1) == other.0.id(other.1) {
            return false;
        }
        for (block, page) in [one, other] {
            if block.peek(page).size() != PageSize::Size4K {
                self.split(block.range_of(&(page..page + 1)), notifier);
            }
        }
        let mut sharing = self.lock();
        let pages = [one, other];
        let Some(keeper) = self.common_frame(pages.map(entry)) else { return false };
        let moving = pages.into_iter().filter(|&page| !is_sharing(entry(page), keeper)).collect::<Vec<_>>();
        let ranges = moving.iter().map(|&(block, page)| block.range_of(&(page..page + 1)));
        let ranges = ranges.collect::<Vec<_>>();
        ranges.iter().for_each(|&range| notifier.invalidate_range_start(range));
        claim_all(&moving);
        // Nobody can write them now, but could until now.
        let merged = self.common_frame(pages.map(entry)) == Some(keeper);
        for &(block, page) in &moving {
            let pte = block.claimed(page);
            let new = if merged { self.join_shared(&mut sharing, keeper, block.id(page), pte) } else { pte };
            block.put(page, new);
        }
        ranges.iter().rev().for_each(|&range| notifier.invalidate_range_end(range));
        merged
    }

    /// Gives a page that shares its frame one of its own, as a write by the process would do. The others keep theirs. An
    /// error if the page may not be written, or no frame is left.
    pub fn break_cow(&self, hva: Hva, notifier: &mut dyn MmuNotifier) -> Result<(), HostFault> {
        let mut sharing = self.lock();
        let (block, page) = self.find(hva).ok_or(HostFault::Unmapped)?;
        match block.peek(page).idle().answer(true) {
            Some(Err(HostFault::CopyOnWrite)) => {}
            Some(Err(fault)) => return Err(fault),
            Some(Ok(_)) | None => return Ok(()),
        }
        let frame = self.zones.allocate(PageSize::Size4K).ok_or(HostFault::Unmapped)?;
        let range = block.range_of(&(page..page + 1));
        notifier.invalidate_range_start(range);
        let old = block.claim(page);
        self.leave_shared(&mut sharing, old.frame(), block.id(page));
        let new = old.mapping(frame, PageSize::Size4K);
        self.zones.set_record(frame, Record::page(block.id(page), new));
        block.put(page, new);
        notifier.invalidate_range_end(range);
        Ok(())
    }

    /// The frame that two pages can share, if their bytes are the same.
    fn common_frame(&self, [one, other]: [Pte; 2]) -> Option<u64> {
        let bytes = |pte: Pte| {
            let mut bytes = [0; FRAME];
            let small = pte.is_present() && pte.size() == PageSize::Size4K;
            (small && self.read(pte.hpa(), &mut bytes).is_ok()).then_some(bytes)
        };
        let accessible = !one.is_no_access() && !other.is_no_access();
        let keeper = if other.is_shared() && !one.is_shared() { other } else { one };
        (accessible && bytes(one)? == bytes(other)?).then(|| keeper.frame())
    }

    /// A page, claimed, shares `frame` from now on; its new entry. The first page of a shared frame has it already.
    fn join_shared(&self, sharing: &mut Sharing, frame: u64, page: PageId, pte: Pte) -> Pte {
        if pte.frame() == frame {
            let bytes = self.bytes.allocate();
            let mut copy = [0; FRAME];
            self.read(pte.hpa(), &mut copy).expect("a page with a frame, read just before");
            for (to, word) in self.bytes.at(bytes).entries().iter().zip(copy.as_chunks().0) {
                to.store(u64::from_le_bytes(*word), Ordering::Relaxed);
            }
            self.zones.set_record(frame, Record::shared(bytes));
        } else if pte.is_shared() {
            self.leave_shared(sharing, pte.frame(), page);
        } else {
            self.zones.free(pte.frame());
        }
        sharing.join(frame, page);
        pte.sharing(frame)
    }

    /// A page shares `frame` no more. With its last page the frame is free.
    pub(super) fn leave_shared(&self, sharing: &mut Sharing, frame: u64, page: PageId) {
        let Some(pages) = sharing.0.get_mut(&frame) else { return };
        pages.retain(|&other| other != page);
        if pages.is_empty() {
            sharing.0.remove(&frame);
            self.free_bytes(frame);
            self.zones.free(frame);
        }
    }

    /// Moves a shared frame, with all its pages; whether there was another one.
    pub(super) fn migrate_shared(&self, frame: u64, notifier: &mut dyn MmuNotifier) -> bool {
        self.change_shared(frame, notifier, |sharing| {
            let new = self.zones.allocate(PageSize::Size4K)?;
            self.zones.set_record(new, self.zones.record(frame));
            self.zones.free(frame);
            let pages = sharing.0.remove(&frame)?;
            sharing.0.insert(new, pages);
            Some(move |pte: Pte| pte.sharing(new))
        })
    }

    /// A shared frame breaks, for all its pages; whether it was still one.
    pub(super) fn poison_shared(&self, frame: u64, notifier: &mut dyn MmuNotifier) -> bool {
        self.change_shared(frame, notifier, |sharing| {
            sharing.0.remove(&frame)?;
            self.free_bytes(frame);
            self.zones.set_record(frame, Record::POISONED);
            Some(Pte::poisoned)
        })
    }

    /// Changes the entries of all pages of a shared frame to what `change` says, if it says something.
    fn change_shared<F: Fn(Pte) -> Pte>(
        &self,
        frame: u64,
        notifier: &mut dyn MmuNotifier,
        change: impl FnOnce(&mut Sharing) -> Option<F>,
    ) -> bool {
        let mut sharing = self.lock();
        let pages = sharing.pages(frame).iter().filter_map(|&id| Some((self.block(id)?, id.page)));
        let pages = pages.collect::<Vec<_>>();
        let ranges = pages.iter().map(|&(block, page)| block.range_of(&(page..page + 1)));
        let ranges: Vec<AddrRange<Hva>> = ranges.collect();
        ranges.iter().for_each(|&range| notifier.invalidate_range_start(range));
        claim_all(&pages);
        let change = change(&mut sharing);
        for &(block, page) in &pages {
            let pte = block.claimed(page);
            block.put(page, change.as_ref().map_or(pte, |change| change(pte)));
        }
        ranges.iter().rev().for_each(|&range| notifier.invalidate_range_end(range));
        change.is_some()
    }

    fn free_bytes(&self, frame: u64) {
        if let Use::Shared(bytes) = self.zones.record(frame).usage() {
            self.bytes.at(bytes).clear();
            self.bytes.free(bytes);
        }
    }
}

fn entry((block, page): (&MappedBlock, u64)) -> Pte {
    block.peek(page).idle()
}

fn is_sharing(pte: Pte, frame: u64) -> bool {
    pte.is_shared() && pte.frame() == frame
}

/// Claims entries by ascending page, as all do: or two could wait for each other.
fn claim_all(pages: &[(&MappedBlock, u64)]) {
    let mut pages = pages.to_vec();
    pages.sort_by_key(|(block, page)| block.id(*page));
    for (block, page) in pages {
        block.claim(page);
    }
}
