//! What an MMU counts, under KVM's names.

use memory_model::PageSize;

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
