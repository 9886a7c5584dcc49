//! What has become stale in processors.

use memory_model::{AddrRange, Address};

/// The input addresses whose translations processors may still keep as they were (rules IV1, IV2). Entries that were
/// absent, and rights that were only granted, leave nothing stale.
///
/// - EPT: INVEPT of the EPTP, on each processor that may have run with it. There is no INVEPT of single addresses.
/// - NPT: a flush of the guest's ASID.
/// - IA-32e: INVLPG of each page in the range, or of all by MOV to CR3; it takes cached table pointers along.
///
/// Until then the old translations may be used, and tables that were freed may be walked.
///
/// ```
/// use ept::Flush;
/// use memory_model::{AddrRange, Gpa, PageSize};
/// let page = |gpa| Flush::of(AddrRange::page_of(Gpa(gpa), PageSize::Size4K));
/// let both = page(0x1000).and(page(0x8000)).and(Flush::NOTHING);
/// assert_eq!(both.range(), AddrRange::inclusive(Gpa(0x1000), Gpa(0x8fff)));
/// assert!(!Flush::NOTHING.is_needed());
/// ```
#[must_use = "processors may keep translations of what has changed"]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flush {
    /// First and last address.
    stale: Option<(u64, u64)>,
}

impl Flush {
    /// Nothing has become stale.
    pub const NOTHING: Self = Self { stale: None };

    /// Those addresses.
    pub fn of<A: Address>(range: AddrRange<A>) -> Self {
        Self { stale: Some((range.first().raw(), range.last().raw())) }
    }

    pub(super) const fn between(first: u64, last: u64) -> Self {
        Self { stale: Some((first, last)) }
    }

    /// Whether anything has become stale.
    pub const fn is_needed(self) -> bool {
        self.stale.is_some()
    }

    /// One range that holds all that has become stale.
    pub fn range<A: Address>(self) -> Option<AddrRange<A>> {
        let (first, last) = self.stale?;
        AddrRange::inclusive(A::from_raw(first), A::from_raw(last))
    }

    /// One flush for both.
    pub fn and(self, other: Self) -> Self {
        match (self.stale, other.stale) {
            (Some(one), Some(two)) => Self::between(one.0.min(two.0), one.1.max(two.1)),
            (one, two) => Self { stale: one.or(two) },
        }
    }
}
