//! Mappings become larger and smaller.

use memory_model::{AddrRange, Hva, PageSize};

use super::block::MappedBlock;
use super::events::Large;
use super::pte::Pte;
use super::{Host, MmuNotifier};

impl Host {
    /// Each mapping of 2 MiB or 1 GiB that the range touches becomes mappings of 4 KiB of the same frame
    /// (`split_huge_pmd`).
    pub fn split(&self, range: AddrRange<Hva>, notifier: &mut dyn MmuNotifier) {
        let large = |pte: Pte| pte.is_present() && pte.size() != PageSize::Size4K;
        self.change(range, notifier, Large::Split, large, |_, _, mapping| mapping.pte);
    }

    /// Each aligned 2 MiB of the range gets one frame (`collapse_huge_page`); how many did. Pages that have no frame get
    /// one with it, shared ones leave the others. It stays as it is where no page has a frame, where one has a large one
    /// already or is broken, where rights differ, and where no frame of 2 MiB is left.
    pub fn collapse(&self, range: AddrRange<Hva>, notifier: &mut dyn MmuNotifier) -> u64 {
        let size = PageSize::Size2M;
        let inside = self
            .mapped()
            .filter_map(|block| Some((block, block.range()?.intersection(range)?.pages_within(size)?)));
        let large = inside.flat_map(|(block, inside)| {
            inside
                .page_starts(size)
                .filter_map(|hva| block.around(block.page_at(hva)?, size))
                .map(move |pages| (block, pages))
        });
        large.filter(|(block, pages)| self.collapse_one(block, pages.clone(), notifier)).count() as u64
    }

    fn collapse_one(
        &self,
        block: &MappedBlock,
        pages: std::ops::Range<u64>,
        notifier: &mut dyn MmuNotifier,
    ) -> bool {
        let mut sharing = self.lock();
        let rights = block.peek(pages.start).untouched();
        let fit =
            |pte: Pte| pte.untouched() == rights && !pte.is_poisoned() && pte.size() == PageSize::Size4K;
        let entries = || pages.clone().map(|page| block.peek(page).idle());
        if pages.end > block.pages() || !entries().all(fit) || !entries().any(Pte::is_present) {
            return false;
        }
        let Some(frame) = self.zones.allocate(PageSize::Size2M) else { return false };
        let range = block.range_of(&pages);
        notifier.invalidate_range_start(range);
        let claimed = block.claim_run(pages.clone(), fit);
        if claimed {
            for page in pages.clone() {
                self.release_frame(&mut sharing, block, page, block.claimed(page));
            }
            self.map_large(block, pages, rights, frame, PageSize::Size2M);
        } else {
            // A fault has made it large meanwhile.
            (frame..frame + 512).for_each(|piece| self.zones.free(piece));
        }
        notifier.invalidate_range_end(range);
        claimed
    }
}
