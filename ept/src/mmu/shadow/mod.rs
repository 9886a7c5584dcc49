//! The shadow MMU: tables from a guest's virtual addresses straight to the host's frames, made from the guest's own
//! tables, its slots and the host (KVM's `mmu.c` and `paging_tmpl.h`).
//!
//! ```text
//! guest tables (GVA -> GPA)      slots (GPA -> HVA)      host (HVA -> HPA)
//!        \__________________________|_______________________/
//!                     shadow tables (GVA -> HPA)
//! ```
//!
//! - A shadow page stands for one table of the guest, or for a piece of a large guest page ([`PageRole`]). It stays when
//!   the guest switches to another address space.
//! - The guest cannot write a table that has a shadow: the fault ends as [`WriteProtected`], the caller does the write
//!   and calls [`Shadow::track_write`]. A table of level 1 alone goes unsync instead, and catches up at the guest's next
//!   flush: [`Shadow::load`], [`Shadow::invlpg`], [`Shadow::sync_roots`].
//! - Shadow tables are of 4 levels, or of 5 under CR4.LA57, whatever the guest's are. Pointers grant everything, and
//!   leaves what the guest's entries grant together. Hardware runs with CR0.WP set.
//!
//! Locking: who owns the [`Shadow`] holds KVM's `mmu_lock` for writing. When [`Shadow::flushes`] has changed after a
//! call, no processor may use a translation from before: the owner flushes their TLBs before it lets any of them go on.
//!
//! # Example
//!
//! A host whose frames lie where its addresses say, one slot at 0, and a guest with paging off:
//!
//! ```
//! # use std::cell::RefCell;
//! use ept::mmu::{FaultOutcome, HostFault, HostFrame, HostFrames, Memslot, Memslots, Shadow, ShadowOptions, SlotLookup};
//! use ept::{Access, Flags, FrameAllocator, MaxPhyAddr, MemoryError, PhysMemory, SparseMemory, translate};
//! use memory_model::{Gpa, Hpa, Hva, PageSize};
//!
//! struct Host(RefCell<SparseMemory>);
//! impl PhysMemory for Host {
//!     fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
//!         self.0.borrow().read_entry(address)
//!     }
//!     fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
//!         self.0.borrow().compare_exchange(address, current, new)
//!     }
//! }
//! impl HostFrames for Host {
//!     fn host_frame(&self, hva: Hva, _write: bool) -> Result<HostFrame, HostFault> {
//!         let hpa = Hpa(hva.raw()).align_down(PageSize::Size4K);
//!         Ok(HostFrame { hpa, size: PageSize::Size4K, writable: true })
//!     }
//!     fn allocate_table(&self) -> Option<u64> {
//!         self.0.borrow_mut().allocate_table()
//!     }
//!     fn free_table(&self, frame: u64) {
//!         self.0.borrow_mut().free_table(frame)
//!     }
//! }
//!
//! struct Slots(Memslot);
//! impl Memslots for Slots {
//!     fn slot(&self, gpa: Gpa) -> SlotLookup {
//!         Some(self.0).filter(|slot| slot.hva_of(gpa).is_some()).into()
//!     }
//!     fn mark_page_dirty(&self, _gpa: Gpa) {}
//! }
//!
//! let host = Host(RefCell::new(SparseMemory::allocating_from(0x10_0000)));
//! let slots = Slots(Memslot { base: Gpa(0), bytes: 0x8000, hva: Hva(0x70_0000), readonly: false, log_dirty: false });
//! let mut shadow = Shadow::new(ShadowOptions { max_phy_addr: MaxPhyAddr::new(46).unwrap(), max_tables: 64 });
//! let mut cpu = shadow.context(&host)?;
//!
//! let outcome = shadow.fault(&mut cpu, 0x1234, Access::WRITE, &slots, &host)?;
//! assert_eq!(outcome, FaultOutcome::Fixed { size: PageSize::Size4K });
//! let leaf = translate(&host, cpu.paging(), 0x1234, Access::WRITE, Flags::Set).unwrap();
//! assert_eq!(leaf.address, 0x70_1234);
//! assert_eq!(shadow.fault(&mut cpu, 0x9000, Access::READ, &slots, &host)?, FaultOutcome::Mmio { gpa: Gpa(0x9000) });
//!
//! // With paging on: `shadow.load(&mut cpu, Paging::from_registers(..)?.as_ref(), &slots, &host)`.
//! shadow.unload(cpu, &host)?;
//! shadow.free(&host);
//! # Ok::<(), ept::Error>(())
//! ```
//!
//! [`WriteProtected`]: crate::mmu::FaultOutcome::WriteProtected

mod context;
mod entries;
mod fault;
mod memory;
mod page;
mod pages;
mod prefetch;
mod rmap;
mod role;
mod roots;
mod sync;
mod track;
mod zap;

use memory_model::Gpa;

use super::spte::SpteMaker;
use super::{Invalidations, Stats};
use crate::format::{Format, Ia32e, Levels, MaxPhyAddr};

pub use context::ShadowContext;
pub use page::ShadowPage;
pub use role::PageRole;

use pages::Pages;
use rmap::Rmap;
use role::Modes;

/// What a shadow MMU is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShadowOptions {
    /// The host's MAXPHYADDR.
    pub max_phy_addr: MaxPhyAddr,
    /// How many tables there may be (`n_max_mmu_pages`, rule K5). Roots in use, and what a single fault needs, are made
    /// even above it.
    pub max_tables: usize,
}

/// What only a shadow MMU counts, under KVM's names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ShadowStats {
    /// Shadow pages taken out of use.
    pub mmu_shadow_zapped: u64,
    /// Emulated writes that the shadow was told of.
    pub mmu_pte_write: u64,
    /// Shadow pages zapped because their table was written too often, or not like a table.
    pub mmu_flooded: u64,
    /// Shadow pages zapped to stay below the limit.
    pub mmu_recycled: u64,
    /// Shadow pages that are unsync now.
    pub mmu_unsync: u64,
}

/// The shadow tables of one VM.
#[derive(Debug)]
pub struct Shadow {
    options: ShadowOptions,
    /// Makes all entries; [`Format::levels`] of its format is that of most roots.
    sptes: SpteMaker,
    /// With one level more, for the roots of guests with CR4.LA57.
    format_5: Format,
    modes: Modes,
    pages: Pages,
    rmap: Rmap,
    /// Leaves of 4K, 2M and 1G now.
    leaves: [u64; 3],
    counts: Stats,
    stats: ShadowStats,
    flushes: u64,
    invalidations: Invalidations,
}

impl Shadow {
    /// An MMU without tables.
    pub fn new(options: ShadowOptions) -> Self {
        let format = |levels| Format::ia32e(Ia32e::new(levels, options.max_phy_addr));
        let max_tables = options.max_tables.max(zap::LEAST_TABLES);
        Self {
            options: ShadowOptions { max_tables, ..options },
            sptes: SpteMaker::new(format(Levels::Four)),
            format_5: format(Levels::Five),
            modes: Modes::default(),
            pages: Pages::default(),
            rmap: Rmap::default(),
            leaves: [0; 3],
            counts: Stats::default(),
            stats: ShadowStats::default(),
            flushes: 0,
            invalidations: Invalidations::default(),
        }
    }

    /// The host's invalidations.
    pub fn invalidations(&self) -> &Invalidations {
        &self.invalidations
    }

    /// The counters that both MMUs have.
    pub fn stats(&self) -> Stats {
        let [pages_4k, pages_2m, pages_1g] = self.leaves;
        Stats { pages_4k, pages_2m, pages_1g, ..self.counts }
    }

    /// The counters of a shadow MMU alone.
    pub fn shadow_stats(&self) -> ShadowStats {
        self.stats
    }

    /// How often something was taken away that a TLB may still hold (`remote_tlb_flush`).
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// All shadow pages, in no order.
    pub fn shadow_pages(&self) -> impl Iterator<Item = &ShadowPage> {
        self.pages.iter()
    }

    /// The guest's tables that it may write, so that a shadow of theirs may be older.
    pub fn unsync_tables(&self) -> impl Iterator<Item = Gpa> {
        self.shadow_pages().filter(|page| page.unsync).filter_map(ShadowPage::guest_table)
    }

    /// Bytes of all tables that hardware walks: 4 KiB each.
    pub fn table_bytes(&self) -> u64 {
        self.pages.len() as u64 * 4096
    }
}
