//! What a processor remembers of the tables it has walked, and the instructions that make it forget.
//!
//! [`Tlb`] holds the three kinds of mappings of the SDM (vol. 3C, "Caching Translation Information"; rule IV3), each
//! with pages and with the tables on the way to them (paging-structure caches):
//!
//! ```text
//! linear          GVA -> HPA without EPT        by VPID and PCID
//! guest-physical  GPA -> HPA                    by EPTP[51:12]
//! combined        GVA -> GPA -> HPA             by VPID, PCID and EPTP[51:12]
//! ```
//!
//! A combined mapping of a guest's table holds where the second level puts it: if the table moves there, the old one is
//! read until INVEPT.
//!
//! Nothing is forgotten because memory changes. So a page that lost its rights, or moved, is still used as before
//! until the right [`invept`](Tlb::invept), [`invvpid`](Tlb::invvpid), [`invlpg`](Tlb::invlpg) or
//! [`mov_to_cr3`](Tlb::mov_to_cr3): what a hypervisor forgets to invalidate shows as it would on hardware. Where the
//! SDM leaves a choice, `Tlb` does what is worst for software, with two exceptions: a fault drops all that led to it
//! (rule IV2), and a full set drops its oldest entry.
//!
//! [`Tlb::stale`] lists what is remembered and no longer true.
//!
//! Neither absent nor malformed entries are remembered (rule M7), nor what a walk with
//! [`Flags::Keep`](crate::Flags::Keep) finds.

mod cache;
mod dimension;
mod forget;
mod known;
mod stale;
mod translate;

pub use forget::{InvEpt, InvVpid, VMFAIL_INVALID_OPERAND, VmFail};
pub use stale::{Mapped, Stale, Staleness, Translation};

use crate::paging::Start;
use cache::Space;
use dimension::Dimension;
use known::Known;
use translate::{Combined, GuestTable};

/// The address space of linear addresses.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct LinearSpace {
    /// The virtual processor's VPID; 0 outside VMX, and with VPIDs off.
    pub vpid: u16,
    /// CR3 bits 11:0 with CR4.PCIDE, else 0.
    pub pcid: u16,
    /// CR4.PGE: pages with G belong to all PCIDs.
    pub global_pages: bool,
}

impl LinearSpace {
    #[inline]
    const fn behind(self, second: Option<u64>) -> Space {
        Space::new(second, self.vpid, self.pcid)
    }
}

/// The translation caches of one logical processor (rule IV4: each has its own).
///
/// ```
/// use ept::tlb::{InvEpt, LinearSpace, Tlb};
/// # use ept::{Access, Attributes, EptCaps, Eptp, Flags, FrameAllocator, Kind, Levels, Mapper, MaxPhyAddr, Paging};
/// # use ept::{Rights, SparseMemory};
/// # use memory_model::{Gva, Hpa, PageSize};
/// # let (caps, width) = (EptCaps::all(), MaxPhyAddr::new(46).unwrap());
/// # let mut memory = SparseMemory::allocating_from(0x10_0000);
/// # let root = memory.allocate_table().unwrap();
/// # let eptp = Eptp::for_root(root, Levels::Four, true, caps, width)?;
/// # let ept = Paging::ept(eptp, caps, width);
/// # let page = Attributes::ram(Kind::Ept, Rights::RWX);
/// # Mapper::new(&mut memory, ept).map(0x5000, 0x20_0000, PageSize::Size4K, page)?;
/// let mut tlb = Tlb::new(64, 64);
/// let mut read = |tlb: &mut Tlb, memory: &_| {
///     tlb.nested(memory, None, &ept, LinearSpace::default(), Gva(0x5000), Access::READ, Flags::Set)
/// };
/// assert_eq!(read(&mut tlb, &memory).unwrap().hpa, Hpa(0x20_0000));
///
/// // The page is taken away, but this processor has not heard of it.
/// Mapper::new(&mut memory, ept).unmap(0x5000)?;
/// assert_eq!(read(&mut tlb, &memory).unwrap().hpa, Hpa(0x20_0000));
///
/// tlb.invept(InvEpt::Single(eptp));
/// assert!(read(&mut tlb, &memory).is_err());
/// # Ok::<(), ept::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Tlb {
    linear: Dimension<Known, Start>,
    physical: Dimension<Known, Start>,
    combined: Dimension<Combined, GuestTable>,
}

impl Tlb {
    /// With room for that many pages, and that many tables, of each kind of mapping, rounded up to powers of two.
    pub fn new(pages: usize, tables: usize) -> Self {
        Self {
            linear: Dimension::new(pages, tables),
            physical: Dimension::new(pages, tables),
            combined: Dimension::new(pages, tables),
        }
    }
}
