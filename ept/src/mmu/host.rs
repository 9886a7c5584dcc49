//! The host as the MMU sees it: frames behind the addresses of its process, and frames for tables.

use memory_model::{Hpa, Hva, PageSize};

use crate::phys::PhysMemory;

/// What the host has behind an HVA.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostFrame {
    /// The host-physical address of the 4 KiB page of the HVA.
    pub hpa: Hpa,
    /// Size of the host's own mapping of it.
    pub size: PageSize,
    /// Whether the host may write there.
    pub writable: bool,
}

/// Why the host has no frame for an HVA.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HostFault {
    /// Nothing is mapped there, or not with these rights (`KVM_PFN_ERR_FAULT`: `KVM_RUN` returns `EFAULT`).
    #[error("no accessible host page")]
    Unmapped,
    /// The frame is broken (`KVM_PFN_ERR_HWPOISON`: `SIGBUS`).
    #[error("poisoned host page")]
    Poisoned,
}

/// The host's memory: its tables, and the frames behind its processes. Processors share it, so that each method may be
/// called while another one is under way.
pub trait HostFrames: PhysMemory {
    /// The frame behind `hva`, faulted in if need be (`hva_to_pfn`, `handle_mm_fault`). For a read, `writable` says
    /// whether a write would do without another fault; for a write it is set.
    fn host_frame(&self, hva: Hva, write: bool) -> Result<HostFrame, HostFault>;

    /// A frame for a table, all zero; `None` if there is none left.
    fn allocate_table(&self) -> Option<u64>;

    /// Takes back a frame that [`allocate_table`](Self::allocate_table) gave. A walker that runs beside may have read
    /// a pointer to it just before: it is not given out again before all of them are through.
    fn free_table(&self, frame: u64);
}
