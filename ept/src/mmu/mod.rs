//! KVM's side: from a fault on a guest-physical address to a second-level entry.
//!
//! [`Tdp`] is KVM's TDP MMU: one tree of tables per VM, built on faults. It asks for slots and for host frames
//! through two traits, so that it knows neither who keeps them nor how.
//!
//! Locking: nothing here holds a lock. A `RwLock` around [`Tdp`] is KVM's `mmu_lock`: faults take it shared, as many at a
//! time as there are processors; zaps, logging and slots take it exclusively. [`Invalidations`] is `mmu_invalidate_seq`
//! (rule N3: a frame that was looked up before an invalidation is never installed after it).
//!
//! ```
//! use ept::mmu::{FaultOutcome, HostFault, HostFrame, HostFrames, Memslot, Memslots, SlotLookup, Tdp, TdpOptions};
//! use ept::{Access, Ept, EptCaps, Flags, Format, Levels, MaxPhyAddr, translate};
//! # use ept::{FrameAllocator, MemoryError, PhysMemory, SparseMemory};
//! # use std::cell::RefCell;
//! use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};
//!
//! struct Host {
//!     tables: RefCell<SparseMemory>,
//! }
//! # impl PhysMemory for Host {
//! #     fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
//! #         self.tables.borrow().read_entry(address)
//! #     }
//! #     fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
//! #         self.tables.borrow().compare_exchange(address, current, new)
//! #     }
//! # }
//!
//! impl HostFrames for Host {
//!     // All of this process is in huge pages, whose frames lie as its addresses do.
//!     fn host_frame(&self, hva: Hva, _write: bool) -> Result<HostFrame, HostFault> {
//!         let hpa = Hpa(hva.align_down(PageSize::Size4K).raw());
//!         Ok(HostFrame { hpa, size: PageSize::Size2M, writable: true })
//!     }
//!     fn allocate_table(&self) -> Option<u64> {
//!         self.tables.borrow_mut().allocate_table()
//!     }
//!     fn free_table(&self, frame: u64) {
//!         self.tables.borrow_mut().free_table(frame);
//!     }
//! }
//!
//! struct Slots;
//! impl Memslots for Slots {
//!     fn slot(&self, gpa: Gpa) -> SlotLookup {
//!         let ram = Memslot { base: Gpa(0), bytes: 8 << 20, hva: Hva(1 << 30), readonly: false, log_dirty: false };
//!         SlotLookup::from(ram.hva_of(gpa).map(|_| ram))
//!     }
//!     fn mark_page_dirty(&self, _gpa: Gpa) {}
//! }
//!
//! let host = Host { tables: RefCell::new(SparseMemory::allocating_from(0x10_0000)) };
//! let ept = Ept::new(Levels::Four, EptCaps::all(), MaxPhyAddr::new(46).unwrap());
//! let mut tdp = Tdp::new(Format::ept(ept), TdpOptions::default(), &host)?;
//!
//! // The guest touches a page: an EPT violation, and one huge page later it goes on.
//! let touch = |tdp: &Tdp, gpa| translate(&host, tdp.paging(), gpa, Access::WRITE, Flags::Set);
//! let violation = touch(&tdp, 0x20_1234).unwrap_err();
//! let outcome = tdp.exit(Gpa(0x20_1234), violation, &Slots, &host)?;
//! assert_eq!(outcome, FaultOutcome::Fixed { size: PageSize::Size2M });
//! assert_eq!(touch(&tdp, 0x20_1234).unwrap().address, (1 << 30) + 0x20_1234);
//!
//! // The host takes the page away.
//! let page = AddrRange::page_of(Gpa(0x20_0000), PageSize::Size4K);
//! assert!(tdp.invalidate_begin(page, &host)?.flush);
//! tdp.invalidate_end();
//! assert!(touch(&tdp, 0x20_1234).is_err());
//!
//! // Where no slot is, there are devices.
//! let outcome = tdp.fault(Gpa(0xfee0_0000), Access::READ, &Slots, &host)?;
//! assert_eq!(outcome, FaultOutcome::Mmio { gpa: Gpa(0xfee0_0000) });
//! # Ok::<(), ept::Error>(())
//! ```

mod host;
mod level;
mod mmio;
mod notifier;
mod page_fault;
pub mod shadow;
mod spte;
mod stats;
mod tdp;
mod zapped;

use memory_model::{Gpa, Hva, PageSize};

pub use host::{HostFault, HostFrame, HostFrames};
pub use notifier::{InvalidateSeq, Invalidations};
pub use page_fault::{FaultOutcome, Faultin, PageFault};
pub use shadow::{PageRole, Shadow, ShadowContext, ShadowOptions, ShadowPage, ShadowStats};
pub use spte::SpteBits;
pub use stats::Stats;
pub use tdp::{Tdp, TdpOptions, TdpPage};
pub use zapped::Zapped;

/// A slot: guest-physical memory that lies at one stretch of this process (`kvm_memory_slot`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memslot {
    /// The first guest-physical address, page aligned.
    pub base: Gpa,
    /// Length, a multiple of the page size.
    pub bytes: u64,
    /// Where `base` lies in this process.
    pub hva: Hva,
    /// `KVM_MEM_READONLY`: guest writes are MMIO.
    pub readonly: bool,
    /// `KVM_MEM_LOG_DIRTY_PAGES`: writes are logged, page by page.
    pub log_dirty: bool,
}

impl Memslot {
    /// Where `gpa` lies in this process; `None` outside the slot.
    pub fn hva_of(&self, gpa: Gpa) -> Option<Hva> {
        let offset = gpa.checked_sub(self.base).filter(|&offset| offset < self.bytes)?;
        self.hva.checked_add(offset)
    }

    /// Whether the whole page of that size around `gpa` lies in the slot.
    pub(crate) fn covers_page(&self, gpa: Gpa, size: PageSize) -> bool {
        let first = gpa.align_down(size);
        let last = first.checked_add(size.bytes() - 1);
        self.hva_of(first).is_some() && last.and_then(|last| self.hva_of(last)).is_some()
    }
}

/// What is at a guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotLookup {
    /// This slot holds it.
    Slot(Memslot),
    /// Its slot is about to go or to move (`KVM_MEMSLOT_INVALID`): the access is made again when it has.
    Invalid,
    /// No slot: an access is MMIO.
    Hole,
}

impl From<Option<Memslot>> for SlotLookup {
    fn from(slot: Option<Memslot>) -> Self {
        slot.map_or(Self::Hole, Self::Slot)
    }
}

/// Who knows the slots (`struct kvm_memslots`).
pub trait Memslots {
    /// What is at `gpa` (`gfn_to_memslot`).
    fn slot(&self, gpa: Gpa) -> SlotLookup;

    /// A page of a slot that logs dirty pages was made writable for a write (`mark_page_dirty_in_slot`).
    fn mark_page_dirty(&self, gpa: Gpa);

    /// How often the slots have changed (`kvm_memslots.generation`); `None` while they are changing (rule Z1), and
    /// where nobody counts: then no access to a hole is remembered (rule I2).
    fn generation(&self) -> Option<u64> {
        None
    }
}
