//! What an MMU counts, under KVM's names.

use memory_model::PageSize;

/// KVM's statistics of the same names.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Faults taken.
    pub pf_taken: u64,
    /// Faults that changed an entry.
    pub pf_fixed: u64,
    /// Faults settled without asking the host (rule D5).
    pub pf_fast: u64,
    /// Faults that found the access allowed.
    pub pf_spurious: u64,
    /// Faults that were left to emulation.
    pub pf_emulate: u64,
    /// Entries made for MMIO (rule I1).
    pub pf_mmio_spte_created: u64,
    /// Leaves of 4 KiB now.
    pub pages_4k: u64,
    /// Leaves of 2 MiB now.
    pub pages_2m: u64,
    /// Leaves of 1 GiB now.
    pub pages_1g: u64,
    /// Large pages not made, or split, because they were executed (rule L5).
    pub nx_lpage_splits: u64,
    /// Leaves taken away.
    pub zapped: u64,
    /// Changes that ask for a flush of the processors.
    pub remote_tlb_flush_requests: u64,
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
