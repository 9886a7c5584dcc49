//! What a 4K leaf looks like when nothing is wrong with it: one comparison for all of it.

use memory_model::PageSize;

use super::host::HostPage;
use super::input::Policy;
use crate::access::Rights;
use crate::error::Error;
use crate::format::{Attributes, Format, Kind, Role};

/// The bits of a 4K leaf that are known beforehand, all but the frame. Rights that a leaf may lack are not among them,
/// nor are those that software is free to use.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template {
    care: u64,
    value: u64,
    /// D, if it implies A; and how far above A it is.
    dirty: u64,
    above: u32,
    /// Bits that let a guest write.
    writes: u64,
}

/// The roles whose bits every leaf has alike. With R set, no combination of the other rights is malformed.
const FIXED: [Role; 10] = [
    Role::Frame,
    Role::Present,
    Role::Read,
    Role::MemoryType,
    Role::IgnorePat,
    Role::WriteThrough,
    Role::CacheDisable,
    Role::PageAttribute,
    Role::PageSize,
    Role::SubPageWrite,
];

/// The roles whose bits let a guest write.
const WRITES: [Role; 3] = [Role::Write, Role::PagingWrite, Role::SupervisorShadowStack];

impl Template {
    /// The template of leaves that may be writable, or not.
    pub fn new(format: &Format, policy: &Policy<'_>, writable: bool) -> Result<Self, Error> {
        let bits = |role| format.bits(role, 1, true);
        let mut care = format.reserved(1, true) | policy.encryption;
        care |= FIXED.into_iter().fold(0, |care, role| care | bits(role));
        let mut rights = Rights::READ | Rights::EXEC;
        if format.kind() == Kind::Npt {
            rights |= Rights::USER;
            care |= bits(Role::User);
        }
        let writes = WRITES.into_iter().fold(0, |writes, role| writes | bits(role));
        if !writable {
            care |= writes;
        }
        let leaf =
            format.leaf(PageSize::Size4K, 0, Attributes { rights, caching: policy.ram, software: 0 })?;
        let [accessed, dirty] = [Role::Accessed, Role::Dirty].map(bits);
        let flags = format.has_accessed_dirty() && policy.dirty_implies_accessed;
        Ok(Self {
            care,
            value: leaf & care | policy.encryption,
            dirty: if flags { dirty } else { 0 },
            above: dirty.trailing_zeros().saturating_sub(accessed.trailing_zeros()),
            writes,
        })
    }

    /// The bits that are wrong, of the leaf or of the host's page: zero if the leaf is right, and for RAM that is this
    /// process's alone. Anything else takes a closer look.
    #[inline(always)]
    pub fn wrong(&self, entry: u64, page: HostPage) -> u64 {
        let page = page.raw();
        (entry ^ (page | self.value)) & self.care
            | page & HostPage::FLAGS
            | entry & self.dirty & !(entry << self.above)
    }

    /// Whether the leaf lets a guest write.
    #[inline]
    pub fn writes(&self, entry: u64) -> bool {
        entry & self.writes != 0
    }

    /// Whether all of these leaves are right.
    #[inline]
    pub fn all_right(&self, entries: &[u64], pages: &[HostPage]) -> bool {
        entries.iter().zip(pages).fold(0, |wrong, (&entry, &page)| wrong | self.wrong(entry, page)) == 0
    }
}
