//! What a software machine is made of.

use ept::mmu::{ShadowOptions, TdpOptions};
use ept::{Ept, EptCaps, Format, Ia32e, Levels, MaxPhyAddr};

use super::cpu::{PHYSICAL_ADDRESS_BITS, Vendor};

/// Width of physical addresses, the host's and the guest's.
pub(super) const MAX_PHY_ADDR: MaxPhyAddr = match MaxPhyAddr::new(PHYSICAL_ADDRESS_BITS as u8) {
    Some(bits) => bits,
    None => panic!("MAXPHYADDR is 32 to 52 bits"),
};

/// How a software machine gets from guest-physical memory to the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecondLevel {
    /// Intel's extended page tables.
    Ept {
        /// Levels of the tables.
        levels: Levels,
        /// The processor sets accessed and dirty flags in them.
        accessed_dirty: bool,
        /// Entries may grant execution alone.
        execute_only: bool,
    },
    /// AMD's nested page tables.
    Npt {
        /// Levels of the tables.
        levels: Levels,
    },
    /// None: KVM makes tables of its own from the guest's (shadow paging).
    Shadow,
}

impl SecondLevel {
    /// EPT of a recent server: four levels, accessed and dirty flags, execute-only pages.
    pub const EPT: Self = Self::Ept { levels: Levels::Four, accessed_dirty: true, execute_only: true };
    /// NPT of four levels.
    pub const NPT: Self = Self::Npt { levels: Levels::Four };

    /// The format of the tables; `None` for a shadow.
    pub(super) fn format(self) -> Option<Format> {
        Some(match self {
            Self::Ept { levels, accessed_dirty, execute_only } => {
                let mut caps = EptCaps::all();
                caps.set(EptCaps::LEVELS_5, levels == Levels::Five);
                caps.set(EptCaps::ACCESSED_DIRTY, accessed_dirty);
                caps.set(EptCaps::EXECUTE_ONLY, execute_only);
                Format::ept(Ept { accessed_dirty, ..Ept::new(levels, caps, MAX_PHY_ADDR) })
            }
            Self::Npt { levels } => Format::npt(Ia32e { amd: true, ..Ia32e::new(levels, MAX_PHY_ADDR) }),
            Self::Shadow => return None,
        })
    }

    /// Whether processors mark by D what guests write.
    pub(super) fn has_dirty_bits(self) -> bool {
        self.format().is_some_and(|format| format.has_accessed_dirty())
    }
}

/// What a software machine is made of, and the parameters of its KVM: see [`SoftVm::with`](super::SoftVm::with).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SoftOptions {
    /// Its second level.
    pub second_level: SecondLevel,
    /// The name of its processors.
    pub vendor: Vendor,
    /// It has the interrupt controllers and timers of a PC: see [`irqchip`](super::irqchip).
    pub irqchip: bool,
    /// Its local APICs have x2APIC mode.
    pub x2apic: bool,
    /// The most tables its MMU may have (`n_max_mmu_pages`); as many as it likes, if `None`.
    pub max_tables: Option<u64>,
    /// `nx_huge_pages`: no large page is executable.
    pub nx_huge_pages: bool,
    /// `mmio_caching`: the second level remembers holes, where its format has a way to.
    pub mmio_caching: bool,
    /// `eager_page_split`: large pages are split when a dirty log starts, not by the first write to each.
    pub eager_page_split: bool,
    /// `pml`: dirty pages are known by D, where the second level has it, not by write protection.
    pub dirty_bits: bool,
}

impl Default for SoftOptions {
    /// A recent server with EPT, and KVM as it comes, but that writes are logged by write protection.
    fn default() -> Self {
        Self {
            second_level: SecondLevel::EPT,
            vendor: Vendor::default(),
            irqchip: false,
            x2apic: true,
            max_tables: None,
            nx_huge_pages: false,
            mmio_caching: true,
            eager_page_split: true,
            dirty_bits: false,
        }
    }
}

impl SoftOptions {
    /// KVM as it comes, with another second level.
    pub fn of(second_level: SecondLevel) -> Self {
        Self { second_level, ..Self::default() }
    }

    pub(super) fn shadow(&self) -> ShadowOptions {
        let most = self.max_tables.and_then(|most| usize::try_from(most).ok());
        ShadowOptions { max_phy_addr: MAX_PHY_ADDR, max_tables: most.unwrap_or(usize::MAX) }
    }

    pub(super) fn tdp(&self) -> TdpOptions {
        let Self { max_tables, nx_huge_pages, mmio_caching, eager_page_split, dirty_bits, .. } = *self;
        TdpOptions { mmio_caching, nx_huge_pages, eager_page_split, dirty_bits, max_tables }
    }
}
