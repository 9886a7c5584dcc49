//! What a software machine is made of.

use ept::{Ept, EptCaps, Format, Ia32e, Levels, MaxPhyAddr};

use super::cpu::PHYSICAL_ADDRESS_BITS;

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
}

impl SecondLevel {
    /// EPT of a recent server: four levels, accessed and dirty flags, execute-only pages.
    pub const EPT: Self = Self::Ept { levels: Levels::Four, accessed_dirty: true, execute_only: true };
    /// NPT of four levels.
    pub const NPT: Self = Self::Npt { levels: Levels::Four };

    /// The format of the tables.
    pub(super) fn format(self) -> Format {
        match self {
            Self::Ept { levels, accessed_dirty, execute_only } => {
                let mut caps = EptCaps::all();
                caps.set(EptCaps::LEVELS_5, levels == Levels::Five);
                caps.set(EptCaps::ACCESSED_DIRTY, accessed_dirty);
                caps.set(EptCaps::EXECUTE_ONLY, execute_only);
                Format::ept(Ept { accessed_dirty, ..Ept::new(levels, caps, MAX_PHY_ADDR) })
            }
            Self::Npt { levels } => Format::npt(Ia32e { amd: true, ..Ia32e::new(levels, MAX_PHY_ADDR) }),
        }
    }
}

/// What a software machine is made of: see [`SoftVm::with`](super::SoftVm::with).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SoftOptions {
    /// Its second level.
    pub second_level: SecondLevel,
}

impl Default for SoftOptions {
    /// A recent server with EPT.
    fn default() -> Self {
        Self { second_level: SecondLevel::EPT }
    }
}
