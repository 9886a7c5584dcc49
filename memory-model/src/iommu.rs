//! IOMMUs: regions that send an access on to another place.

#[cfg(feature = "host")]
mod notifier;

use alloc::sync::Arc;

#[cfg(feature = "host")]
pub use notifier::{IommuNotifier, IommuNotifiers};

use crate::{FlatView, Gpa, MemTxAttrs};

bitflags::bitflags! {
    /// Kinds of access: what is wanted, or what is allowed (QEMU's `IOMMUAccessFlags`).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    pub struct Access: u8 {
        /// Reading.
        const READ = 1 << 0;
        /// Writing.
        const WRITE = 1 << 1;
    }
}

/// One translation (QEMU's `IOMMUTLBEntry`).
#[derive(Clone, Debug)]
pub struct IommuEntry {
    /// The view in which the access goes on: of another address space, mostly.
    pub target: Arc<FlatView>,
    /// Where in it the translated page starts.
    pub translated: Gpa,
    /// The bits of an address that are not translated: the page's size - 1.
    pub mask: u64,
    /// What is allowed.
    pub perm: Access,
}

impl IommuEntry {
    /// Where `iova` goes.
    pub fn address_of(&self, iova: u64) -> Gpa {
        Gpa(self.translated.0 & !self.mask | iova & self.mask)
    }

    /// From `iova` to the end of the page.
    pub(crate) fn bytes_from(&self, iova: u64) -> usize {
        usize::try_from((iova | self.mask) - iova).unwrap_or(usize::MAX).saturating_add(1)
    }
}

/// The translation of an IOMMU region (QEMU's `IOMMUMemoryRegionClass`).
///
/// A target may hold IOMMU regions in turn. A chain of more than 8 is taken for a loop, and gives
/// [`MemTxError::Translation`](crate::MemTxError::Translation).
pub trait IommuOps: Send + Sync {
    /// Translates `iova`, an offset in the region, for an access of that kind; `None` where the guest has mapped
    /// nothing. An entry that does not allow the access counts as none.
    fn translate(&self, iova: u64, access: Access, attrs: MemTxAttrs) -> Option<IommuEntry>;

    /// Where to ask to be told of translations that end, if this IOMMU tells.
    #[cfg(feature = "host")]
    fn notifiers(&self) -> Option<&IommuNotifiers> {
        None
    }
}
