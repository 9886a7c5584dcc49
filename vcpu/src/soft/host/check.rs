//! What is behind what, for those who compare: tests, and the verifier of second-level tables.

use std::collections::HashSet;

use ept::verify::{HostMap, HostPage};
use memory_model::{Hpa, Hva, PageSize};

use super::Host;
use super::block::MappedBlock;
use super::pte::Pte;
use super::record::{PageId, Record, Use};

const FRAME: u64 = PageSize::Size4K.bytes();

/// What 4 KiB of the host's memory are used for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Owner {
    /// Nothing.
    Free,
    /// This page of the process.
    Page(Hva),
    /// These pages of the process, all with the same bytes.
    Shared(Vec<Hva>),
    /// A table.
    Table,
    /// A table that was given back, and is given out again after [`Host::quiesce`].
    Retired,
    /// They are broken.
    Poisoned,
}

/// What the process has, and what the host has for it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Mappings of 4 KiB, 2 MiB and 1 GiB.
    pub mappings: [u64; 3],
    /// Pages that share their frame, among the mappings of 4 KiB.
    pub sharing: u64,
    /// Pages whose frame was taken.
    pub swapped: u64,
    /// Pages whose frame broke.
    pub poisoned: u64,
    /// Tables.
    pub tables: u64,
}

/// Where page tables and frames contradict each other.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Inconsistent {
    /// A page's frame is not the page's.
    #[error("page {hva} has the frame {hpa}, which is {owner:?}")]
    Frame {
        /// The page.
        hva: Hva,
        /// Its frame.
        hpa: Hpa,
        /// What the frame is used for.
        owner: Owner,
    },
    /// A part of a large mapping is not where it should be.
    #[error("page {hva} is in a mapping of {size}, and its frame {hpa} does not continue the others")]
    Large {
        /// The page.
        hva: Hva,
        /// Its frame.
        hpa: Hpa,
        /// Size of the mapping.
        size: PageSize,
    },
    /// A frame belongs to a page that has another one, or none.
    #[error("frame {hpa} is {owner:?}, which has it no more")]
    Stray {
        /// The frame.
        hpa: Hpa,
        /// What it is used for.
        owner: Owner,
    },
    /// A page was written while it shared its frame: [`Host::break_cow`] comes first.
    #[error("page {hva} has other bytes than its shared frame {hpa}")]
    Bytes {
        /// The page.
        hva: Hva,
        /// Its frame.
        hpa: Hpa,
    },
    /// A large frame is used by more, or by fewer pages than it is noted to be.
    #[error("the large frame at {hpa} is noted to be used by {noted} pages, and is by {used}")]
    InUse {
        /// The frame's start.
        hpa: Hpa,
        /// Pages by the note.
        noted: u64,
        /// Pages that it is used by.
        used: u64,
    },
}

impl Host {
    /// What the 4 KiB around `hpa` are used for: the reverse map.
    pub fn owner(&self, hpa: Hpa) -> Owner {
        let hva = |id: PageId| self.block(id).map(|block| block.hva_of(id.page));
        match self.zones.record(hpa.page_number()).usage() {
            Use::Free => Owner::Free,
            Use::Page(id) => hva(id).map_or(Owner::Free, Owner::Page),
            Use::Shared(_) => {
                Owner::Shared(self.lock().pages(hpa.page_number()).iter().filter_map(|&id| hva(id)).collect())
            }
            Use::Table(_) => Owner::Table,
            Use::Retired(_) => Owner::Retired,
            Use::Poisoned => Owner::Poisoned,
        }
    }

    /// Counts by looking at every page and frame.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (block, page) in self.pages() {
            let pte = block.peek(page);
            let first = block.hva_of(page).is_aligned(pte.size());
            counts.mappings[usize::from(pte.size().level()) - 1] += u64::from(pte.is_present() && first);
            counts.sharing += u64::from(pte.is_shared());
            counts.swapped += u64::from(pte.is_swapped());
            counts.poisoned += u64::from(pte.is_poisoned());
        }
        let is_table = |frame: &u64| matches!(self.zones.record(*frame).usage(), Use::Table(_));
        counts.tables = self.zones.frames().filter(is_table).count() as u64;
        counts
    }

    /// Compares page tables, frames and bytes, at a moment when nobody changes them. The first contradiction.
    pub fn check(&self) -> Result<(), Inconsistent> {
        self.pages().try_for_each(|(block, page)| self.check_page(block, page))?;
        self.zones.frames().try_for_each(|frame| self.check_frame(frame))
    }

    fn pages(&self) -> impl Iterator<Item = (&MappedBlock, u64)> {
        self.mapped().flat_map(|block| (0..block.pages()).map(move |page| (block, page)))
    }

    fn check_page(&self, block: &MappedBlock, page: u64) -> Result<(), Inconsistent> {
        let (pte, hva) = (block.peek(page), block.hva_of(page));
        if !pte.is_present() {
            return Ok(());
        }
        let (hpa, size) = (pte.hpa(), pte.size());
        let run = block.around(page, size).unwrap_or(page..page + 1);
        let continues = block.peek(run.start).further(page - run.start) == pte;
        if hva.page_offset(size) != hpa.page_offset(size) || !continues {
            return Err(Inconsistent::Large { hva, hpa, size });
        }
        let record = self.zones.record(pte.frame());
        let owned = match record.usage() {
            Use::Shared(_) => pte.is_shared() && self.lock().pages(pte.frame()).contains(&block.id(page)),
            _ => !pte.is_shared() && record == Record::page(block.id(page), pte),
        };
        if !owned {
            return Err(Inconsistent::Frame { hva, hpa, owner: self.owner(hpa) });
        }
        let bytes = |read: &dyn Fn(&mut [u8]) -> bool| {
            let mut bytes = [0; FRAME as usize];
            read(&mut bytes).then_some(bytes)
        };
        let by_hva = || bytes(&|buf| block.ram.read(page * FRAME, buf).is_ok());
        if pte.is_shared() && by_hva() != bytes(&|buf| self.read(hpa, buf).is_ok()) {
            return Err(Inconsistent::Bytes { hva, hpa });
        }
        Ok(())
    }

    fn check_frame(&self, frame: u64) -> Result<(), Inconsistent> {
        let hpa = Hpa(frame * FRAME);
        let has_it = |id: PageId| {
            let pte = self.block(id).map_or(Pte::default(), |block| block.peek(id.page));
            pte.is_present() && pte.frame() == frame
        };
        let stray = match self.zones.record(frame).usage() {
            Use::Page(id) => !has_it(id),
            Use::Shared(_) => {
                let pages = self.lock().pages(frame).to_vec();
                let different = pages.iter().collect::<HashSet<_>>().len() == pages.len();
                pages.is_empty() || !different || !pages.into_iter().all(has_it)
            }
            _ => false,
        };
        if stray {
            return Err(Inconsistent::Stray { hpa, owner: self.owner(hpa) });
        }
        let Some(pieces) = self.zones.large(frame) else { return Ok(()) };
        let free = |frame: &u64| self.zones.record(*frame).usage() == Use::Free;
        let (noted, used) = (self.zones.in_use(frame), pieces.filter(|frame| !free(frame)).count() as u64);
        if noted == used { Ok(()) } else { Err(Inconsistent::InUse { hpa, noted, used }) }
    }
}

impl HostMap for Host {
    fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
        for (index, to) in (0..).zip(pages) {
            let at = hva.checked_add(index * FRAME).and_then(|hva| self.find(hva));
            let pte = at.map_or(Pte::default(), |(block, page)| block.peek(page));
            *to = host_page(pte);
        }
    }
}

/// What may be mapped there by somebody who asked the host.
fn host_page(pte: Pte) -> HostPage {
    if !pte.is_present() || pte.is_no_access() {
        return HostPage::ABSENT;
    }
    let page = HostPage::at(pte.hpa());
    let page = if pte.is_shared() { page.shared() } else { page };
    if pte.is_shared() || pte.is_read_only() { page.read_only() } else { page }
}
