//! The TDP MMU: guest-physical to host-physical, built on faults (`kvm_tdp_mmu_map`).

use alloc::collections::BTreeMap;

use memory_model::{AddrRange, Gpa, PageSize};

use super::level::mapping_size;
use super::shadow_page::ShadowPage;
use super::spte::{SpteMaker, Target, Writable};
use super::{FaultOutcome, HostFrames, Invalidations, Memslots, PageFault, Stats};
use crate::access::Access;
use crate::error::Error;
use crate::format::Format;
use crate::mappings::{Mapping, mappings};
use crate::paging::Paging;
use crate::phys::PhysMemory;
use crate::walk::{Flags, translate};

/// The second-level tables of one VM.
#[derive(Debug)]
pub struct Tdp {
    pub(super) paging: Paging,
    pub(super) maker: SpteMaker,
    pub(super) pages: BTreeMap<u64, ShadowPage>,
    pub(super) stats: Stats,
    pub(super) invalidations: Invalidations,
}

impl Tdp {
    /// An MMU with an empty root. `format` is that of EPT or NPT.
    pub fn new(format: Format, frames: &impl HostFrames) -> Result<Self, Error> {
        let mut tdp = Self {
            paging: Paging::new(format, 0),
            maker: SpteMaker::new(format),
            pages: BTreeMap::new(),
            stats: Stats::default(),
            invalidations: Invalidations::default(),
        };
        tdp.paging.root = tdp.allocate(format.levels(), Gpa(0), None, frames)?;
        Ok(tdp)
    }

    /// The root and its format: what walkers need.
    pub fn paging(&self) -> &Paging {
        &self.paging
    }

    /// The host's invalidations.
    pub fn invalidations(&self) -> &Invalidations {
        &self.invalidations
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
        frames: &F,
    ) -> Result<FaultOutcome, Error> {
        self.stats.pf_taken += 1;
        let outcome = self.handle(gpa, access, slots, frames)?;
        match outcome {
            FaultOutcome::Fixed { .. } => self.stats.pf_fixed += 1,
            FaultOutcome::Spurious => self.stats.pf_spurious += 1,
            FaultOutcome::Mmio { .. } | FaultOutcome::MmioReadonlyWrite { .. } => self.stats.pf_emulate += 1,
            FaultOutcome::HostFault { .. }
            | FaultOutcome::Retry
            | FaultOutcome::WriteProtected { .. }
            | FaultOutcome::Guest(_) => {}
        }
        Ok(outcome)
    }

    fn handle<F: HostFrames>(
        &mut self,
        gpa: Gpa,
        access: Access,
        slots: &impl Memslots,
        frames: &F,
    ) -> Result<FaultOutcome, Error> {
        // As KVM does beyond `kvm_mmu_max_gfn`: what the tables cannot map is emulated.
        if !self.paging.format.translates(gpa.raw()) {
            return Ok(FaultOutcome::Mmio { gpa });
        }
        let access = access.by_user();
        let fault = PageFault { gpa, access, max_size: PageSize::Size1G };
        let faultin = match fault.resolve(self.invalidations.seq(), slots, frames) {
            Ok(faultin) => faultin,
            Err(outcome) => return Ok(outcome),
        };
        if translate(frames, &self.paging, gpa.raw(), access, Flags::Keep).is_ok() {
            return Ok(FaultOutcome::Spurious);
        }
        let size = mapping_size(&self.paging.format, &fault, &faultin, |_| true);
        if self.invalidations.retry(faultin.seq, AddrRange::page_of(gpa, size)) {
            return Ok(FaultOutcome::Retry);
        }
        let writable = fault.writable(&faultin);
        let spte = self.maker.leaf(size, faultin.host.hpa.align_down(size), writable)?;
        let outcome = self.install(gpa, size, spte, frames)?;
        if faultin.slot.log_dirty && writable == Writable::Yes {
            slots.mark_page_dirty(gpa);
        }
        Ok(outcome)
    }

    /// Puts the leaf in place: links missing tables, splits a larger page in the way, drops smaller ones.
    fn install<F: HostFrames>(
        &mut self,
        gpa: Gpa,
        size: PageSize,
        spte: u64,
        frames: &F,
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
