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
    /// Its frame is shared until it is written (a page merged by KSM), and this is a write. The host can give it a frame
    /// of its own, but must tell the MMUs of it: it is asked for that when none of them is held, and then the access is
    /// made again (`do_wp_page` calls the MMU notifiers; KVM faults pages in before it takes `mmu_lock`).
    #[error("host page is shared until it is written")]
    CopyOnWrite,
}

/// The host's memory: its tables, and the frames behind its processes. Processors share it, so that each method may be
/// called while another one is under way.
pub trait HostFrames: PhysMemory {
    /// The frame behind `hva`, faulted in if need be (`hva_to_pfn`, `handle_mm_fault`). For a read, `writable` says
    /// whether a write would do without another fault; for a write it is set.
    fn host_frame(&self, hva: Hva, write: bool) -> Result<HostFrame, HostFault>;

    /// The same if the frame is there, and whoever asks need not wait (`get_user_page_fast_only`). A host that cannot tell
    /// says no.
    fn present_frame(&self, _hva: Hva, _write: bool) -> Option<HostFrame> {
        None
    }

    /// A frame for a table, all zero; `None` if there is none left.
    fn allocate_table(&self) -> Option<u64>;

    /// Takes back a frame that [`allocate_table`](Self::allocate_table) gave. A fault or a walker that runs beside may
    /// have read a pointer to it just before: until all of them are through and processors are flushed, its entries
    /// stay as they are, and it is not given out again (KVM frees tables after an RCU grace period).
    fn free_table(&self, frame: u64);
}
