//! The TDP MMU: guest-physical to host-physical, built on faults (`kvm_tdp_mmu_map`).

use alloc::collections::BTreeMap;

use memory_model::{Gpa, Hva, PageSize};

use super::shadow_page::ShadowPage;
use super::spte::{SpteMaker, Target, Writable};
use super::{HostFault, HostFrame, HostFrames, Memslot, Memslots, SlotLookup};
use crate::access::Access;
use crate::error::Error;
use crate::format::Format;
use crate::mappings::{Mapping, mappings};
use crate::paging::Paging;
use crate::phys::PhysMemory;
use crate::walk::{Flags, translate};

/// What a fault came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// A page of that size was mapped, or got more rights: the guest goes on (`RET_PF_FIXED`).
    Fixed {
        /// Size of the page.
        size: PageSize,
    },
    /// The tables allow the access already: the processor used an older translation (`RET_PF_SPURIOUS`).
    Spurious,
    /// The slot is about to go or to move, and nothing was mapped: the access is to be made again when it has
    /// (`RET_PF_RETRY`).
    Retry,
    /// No slot: the access is emulated (`RET_PF_EMULATE`).
    Mmio {
        /// The guest-physical address.
        gpa: Gpa,
    },
    /// A write to a read-only slot: emulated like MMIO.
    MmioReadonlyWrite {
        /// The guest-physical address.
        gpa: Gpa,
    },
    /// The host has no page there: `KVM_RUN` fails.
    HostFault {
        /// The guest-physical address.
        gpa: Gpa,
        /// Where the slot says it lies.
        hva: Hva,
        /// What the host says.
        fault: HostFault,
    },
}

/// KVM's statistics of the same names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Faults taken.
    pub pf_taken: u64,
    /// Faults that changed an entry.
    pub pf_fixed: u64,
    /// Faults that found the access allowed.
    pub pf_spurious: u64,
    /// Faults that were left to emulation.
    pub pf_emulate: u64,
    /// Leaves of 4 KiB now.
    pub pages_4k: u64,
    /// Leaves of 2 MiB now.
    pub pages_2m: u64,
    /// Leaves of 1 GiB now.
    pub pages_1g: u64,
}

impl Stats {
    /// Leaves of that size now.
    pub fn pages(&mut self, size: PageSize) -> &mut u64 {
        match size {
            PageSize::Size4K => &mut self.pages_4k,
            PageSize::Size2M | PageSize::Size4M => &mut self.pages_2m,
            PageSize::Size1G => &mut self.pages_1g,
        }
    }
}

/// The second-level tables of one VM.
#[derive(Debug)]
pub struct Tdp {
    pub(super) paging: Paging,
    pub(super) maker: SpteMaker,
    pub(super) pages: BTreeMap<u64, ShadowPage>,
    pub(super) stats: Stats,
}

impl Tdp {
    /// An MMU with an empty root. `format` is that of EPT or NPT.
    pub fn new(format: Format, frames: &mut impl HostFrames) -> Result<Self, Error> {
        let mut tdp = Self {
            paging: Paging::new(format, 0),
            maker: SpteMaker::new(format),
            pages: BTreeMap::new(),
            stats: Stats::default(),
        };
        tdp.paging.root = tdp.allocate(format.levels(), Gpa(0), None, frames)?;
        Ok(tdp)
    }

    /// The root and its format: what walkers need.
    pub fn paging(&self) -> &Paging {
        &self.paging
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// All tables, the root among them, by address.
    pub fn shadow_pages(&self) -> impl Iterator<Item = &ShadowPage> {
        self.pages.values()
    }

    /// All leaves: `address` is the GPA, `frame` the HPA.
    pub fn leaves<'a, M: PhysMemory>(&'a self, memory: &'a M) -> impl Iterator<Item = Mapping> + 'a {
        mappings(memory, &self.paging)
    }

    /// A violation or nested page fault at `gpa` (`kvm_tdp_page_fault`).
    pub fn fault<F: HostFrames>(
        &mut self,
        gpa: Gpa,
        access: Access,
        slots: &impl Memslots,
        frames: &mut F,
    ) -> Result<FaultOutcome, Error> {
        self.stats.pf_taken += 1;
        let outcome = self.handle(gpa, access, slots, frames)?;
        match outcome {
            FaultOutcome::Fixed { .. } => self.stats.pf_fixed += 1,
            FaultOutcome::Spurious => self.stats.pf_spurious += 1,
            FaultOutcome::Mmio { .. } | FaultOutcome::MmioReadonlyWrite { .. } => self.stats.pf_emulate += 1,
            FaultOutcome::HostFault { .. } | FaultOutcome::Retry => {}
        }
        Ok(outcome)
    }

    fn handle<F: HostFrames>(
        &mut self,
        gpa: Gpa,
        access: Access,
        slots: &impl Memslots,
        frames: &mut F,
    ) -> Result<FaultOutcome, Error> {
        // As KVM does beyond `kvm_mmu_max_gfn`: what the tables cannot map is emulated.
        let slot = match slots.slot(gpa) {
            SlotLookup::Slot(slot) => Some(slot).filter(|_| self.paging.format.translates(gpa.raw())),
            SlotLookup::Invalid => return Ok(FaultOutcome::Retry),
            SlotLookup::Hole => None,
        };
        let Some((slot, hva)) = slot.and_then(|slot| Some((slot, slot.hva_of(gpa)?))) else {
            return Ok(FaultOutcome::Mmio { gpa });
        };
        if access.writes() && slot.readonly {
            return Ok(FaultOutcome::MmioReadonlyWrite { gpa });
        }
        let access = access.by_user();
        if translate(frames, &self.paging, gpa.raw(), access, Flags::Keep).is_ok() {
            return Ok(FaultOutcome::Spurious);
        }
        let host = match frames.host_frame(hva, access.writes()) {
            Ok(host) if access.writes() && !host.writable => Err(HostFault::Unmapped),
            found => found,
        };
        let host = match host {
            Ok(host) => host,
            Err(fault) => return Ok(FaultOutcome::HostFault { gpa, hva, fault }),
        };
        let size = self.mapping_size(&slot, gpa, hva, &host);
        let writable = writable(&slot, &host, access);
        let spte = self.maker.leaf(size, host.hpa.align_down(size), writable)?;
        let outcome = self.install(gpa, size, spte, frames)?;
        if slot.log_dirty && writable == Writable::Yes {
            slots.mark_page_dirty(gpa);
        }
        Ok(outcome)
    }

    /// The largest page that rules L1 (dirty log), L2 (slot edges, alignment of GPA to HVA) and L3 (the host's own
    /// mapping) allow, and that the format has.
    fn mapping_size(&self, slot: &Memslot, gpa: Gpa, hva: Hva, host: &HostFrame) -> PageSize {
        let fits = |size: PageSize| {
            let congruent = gpa.page_offset(size) == hva.page_offset(size)
                && gpa.align_down(PageSize::Size4K).page_offset(size) == host.hpa.page_offset(size);
            !slot.log_dirty
                && size <= host.size
                && self.paging.format.has_size(size)
                && slot.covers_page(gpa, size)
                && congruent
        };
        PageSize::ALL.into_iter().rev().find(|&size| fits(size)).unwrap_or(PageSize::Size4K)
    }

    /// Puts the leaf in place: links missing tables, splits a larger page in the way, drops smaller ones.
    fn install<F: HostFrames>(
        &mut self,
        gpa: Gpa,
        size: PageSize,
        spte: u64,
        frames: &mut F,
    ) -> Result<FaultOutcome, Error> {
        let mut page = self.page(self.paging.root);
        loop {
            let level = page.role.level;
            let index = self.paging.format.index(level, gpa.raw());
            let old = frames.read_entry(page.entry_address(index))?;
            let target = self.maker.target(level, old);
            if level == size.level() {
                if old == spte {
                    return Ok(FaultOutcome::Spurious);
                }
                if self.set_spte(&page, index, old, spte, frames)? {
                    if let Target::Table(child) = target {
                        self.free_tree(child, frames)?;
                    }
                    return Ok(FaultOutcome::Fixed { size });
                }
                continue;
            }
            let child = match target {
                Target::Table(child) => Some(child),
                Target::Absent => self.link(&page, index, old, frames)?,
                Target::Leaf(..) => self.split(&page, index, old, frames)?,
            };
            if let Some(child) = child {
                page = self.page(child);
            }
        }
    }
}

/// Whether a new leaf gets W.
fn writable(slot: &Memslot, host: &HostFrame, access: Access) -> Writable {
    if !host.writable {
        Writable::NotInHost
    } else if slot.readonly {
        Writable::NotInGuest
    } else if slot.log_dirty && !access.writes() {
        Writable::AfterLogging
    } else {
        Writable::Yes
    }
}
