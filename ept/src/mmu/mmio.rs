//! Entries for MMIO (rules I1, I2): the next access to the page is known to be one before its slot is looked for.
//!
//! Such an entry makes hardware raise what a RAM page never raises: an EPT misconfiguration (W and X without R), or a
//! page fault with RSVD (bit 51). It holds the page's address and part of the generation that the slots had.

use memory_model::{Gpa, PageSize};

use super::spte::SpteBits;
use crate::format::{Format, Kind};

/// Makes and reads entries for MMIO.
#[derive(Clone, Copy, Debug)]
pub(super) struct MmioMaker {
    /// What such an entry has, and among which bits.
    value: u64,
    mask: u64,
}

/// Where the generation is: its low 8 bits at bit 3, the next 11 at bit 52.
const LOW: (u32, u64) = (3, 0xff);
const HIGH: (u32, u64) = (52, 0x7ff);

impl MmioMaker {
    /// Bits of the generation that fit; when the rest changes, all entries are too old to be told from new ones.
    pub const GENERATION: u64 = HIGH.1 << 8 | LOW.1;

    /// `None` if the format reserves no bit for it: NPT with 52 address bits.
    pub fn new(format: &Format) -> Option<Self> {
        let present = SpteBits::of(format.kind()).mmu_present;
        match format.kind() {
            Kind::Ept => Some(Self { value: 0b110, mask: present | 0b111 }),
            _ if format.max_phy_addr().bits() < 52 => {
                Some(Self { value: 1 << 51 | 1, mask: present | 1 << 51 | 1 })
            }
            _ => None,
        }
    }

    /// The entry for the page of `gpa` (`make_mmio_spte`); `None` if its address does not fit.
    pub fn make(&self, gpa: Gpa, generation: u64) -> Option<u64> {
        let page = gpa.align_down(PageSize::Size4K).raw();
        let low = (generation & LOW.1) << LOW.0;
        let high = (generation >> 8 & HIGH.1) << HIGH.0;
        (page < 1 << 51).then_some(self.value | page | low | high)
    }

    /// The generation in an entry, if that is one for MMIO (`is_mmio_spte`).
    pub fn generation(&self, spte: u64) -> Option<u64> {
        let low = spte >> LOW.0 & LOW.1;
        let high = spte >> HIGH.0 & HIGH.1;
        (spte & self.mask == self.value).then_some(high << 8 | low)
    }
}
