//! What can be told of one table.

use memory_model::{Gpa, Hpa, PageSize};

/// One table of the TDP MMU: a `kvm_mmu_page` with `tdp_mmu_page` set, whose role is always direct.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TdpPage {
    /// Level of the table's entries: 5 PML5, 4 PML4, 3 PDPT, 2 PD, 1 PT.
    pub level: u8,
    /// Hardware sets no accessed and dirty flags in it.
    pub ad_disabled: bool,
    /// The first guest-physical address it translates (`gfn`, in bytes).
    pub gpa: Gpa,
    /// The table itself (`spt`).
    pub table: Hpa,
    /// The table that points to it; `None` for the root.
    pub parent: Option<Hpa>,
    /// Entries in use.
    pub used: u16,
}

impl TdpPage {
    /// The first guest-physical address of entry `index` (rule K4).
    pub fn gpa_of(&self, index: u16) -> Gpa {
        Gpa(self.gpa.raw() | u64::from(index) << (12 + 9 * (self.level - 1)))
    }

    /// Host-physical address of entry `index`.
    pub fn entry_address(&self, index: u16) -> u64 {
        self.table.raw() + u64::from(index) * 8
    }

    /// The size of this table's leaves, if it can have any.
    pub fn leaf_size(&self) -> Option<PageSize> {
        PageSize::of_level(self.level)
    }
}
