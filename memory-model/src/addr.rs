//! Addresses, page sizes and ranges: the only place where address arithmetic is written.
//!
//! A guest's memory has four addresses. Mixing two of them up is the commonest bug of a VMM, so
//! each is a type of its own. Ranges are inclusive at both ends: the last byte of the 64-bit space
//! needs no special case, and an empty range cannot be written down.

use core::fmt;
use core::hash::Hash;

/// One of the four kinds of address: a `u64` that cannot be taken for another kind.
pub trait Address: Copy + Ord + Hash + fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// Wraps a raw value.
    fn from_raw(raw: u64) -> Self;
    /// The raw value.
    fn raw(self) -> u64;
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The raw value.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// `self + bytes`, or `None` past the end of the 64-bit space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(sum) => Some(Self(sum)),
                    None => None,
                }
            }

            /// Bytes from `base` up to `self`, or `None` if `self` lies below.
            pub const fn checked_sub(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// The address rounded down to a page of that size.
            pub const fn align_down(self, size: PageSize) -> Self {
                Self(self.0 & !(size.bytes() - 1))
            }

            /// The address rounded up to a page of that size, or `None` past the end.
            pub const fn align_up(self, size: PageSize) -> Option<Self> {
                match self.0.checked_add(size.bytes() - 1) {
                    Some(sum) => Some(Self(sum).align_down(size)),
                    None => None,
                }
            }

            /// The byte offset inside the page of that size.
            pub const fn page_offset(self, size: PageSize) -> u64 {
                self.0 & (size.bytes() - 1)
            }

            /// Whether the address starts a page of that size.
            pub const fn is_aligned(self, size: PageSize) -> bool {
                self.page_offset(size) == 0
            }

            /// The number of the 4 KiB page the address lies in (a gfn, for a [`Gpa`]).
            pub const fn page_number(self) -> u64 {
                self.0 >> PageSize::Size4K.shift()
            }
        }

        impl Address for $name {
            fn from_raw(raw: u64) -> Self {
                Self(raw)
            }
            fn raw(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }
    };
}

address! {
    /// Guest virtual address: what a program in the guest uses, translated by the guest's page tables.
    Gva
}
address! {
    /// Guest physical address: what the guest's OS calls RAM, translated by slots (GPA -> HVA) and by
    /// the second-level table (GPA -> HPA).
    Gpa
}
address! {
    /// Host virtual address: where this process mapped the memory.
    Hva
}
address! {
    /// Host physical address: a real frame, or a simulated one on the soft machine.
    Hpa
}

/// The page sizes of x86 paging and of EPT.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageSize {
    /// 4 KiB: a leaf at level 1.
    Size4K,
    /// 2 MiB: a leaf at level 2.
    Size2M,
    /// 4 MiB: a leaf at level 2 of 32-bit paging, and nowhere else.
    Size4M,
    /// 1 GiB: a leaf at level 3.
    Size1G,
}

impl PageSize {
    /// The sizes of 64-bit paging, of EPT, and of the host's memory: smallest first.
    pub const ALL: [Self; 3] = [Self::Size4K, Self::Size2M, Self::Size1G];

    /// log2 of the size in bytes.
    pub const fn shift(self) -> u32 {
        match self {
            Self::Size4K => 12,
            Self::Size2M => 21,
            Self::Size4M => 22,
            Self::Size1G => 30,
        }
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// The paging level whose leaf has this size (1 = PT, 2 = PD, 3 = PDPT).
    pub const fn level(self) -> u8 {
        match self {
            Self::Size4K => 1,
            Self::Size2M | Self::Size4M => 2,
            Self::Size1G => 3,
        }
    }

    /// The size of a leaf at `level` in 64-bit paging and in EPT, or `None` where no leaf exists (level 0 and above 3).
    pub const fn of_level(level: u8) -> Option<Self> {
        match level {
            1 => Some(Self::Size4K),
            2 => Some(Self::Size2M),
            3 => Some(Self::Size1G),
            _ => None,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size4K => "4K",
            Self::Size2M => "2M",
            Self::Size4M => "4M",
            Self::Size1G => "1G",
        })
    }
}

/// A range of addresses, never empty; `last` is inclusive, so 2^64 bytes are a legal length.
///
/// ```
/// use memory_model::{AddrRange, Gpa};
/// let all = AddrRange::new(Gpa(0), 1 << 64).unwrap();
/// assert_eq!(all.last(), Gpa(u64::MAX));
/// assert!(AddrRange::new(Gpa(0x1000), 0).is_none());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddrRange<A> {
    first: A,
    last: A,
}

impl<A: Address> AddrRange<A> {
    /// `bytes` bytes from `first`; `None` if that is empty or reaches past the 64-bit space.
    pub fn new(first: A, bytes: u128) -> Option<Self> {
        let last = u128::from(first.raw()).checked_add(bytes.checked_sub(1)?)?;
        Some(Self { first, last: A::from_raw(u64::try_from(last).ok()?) })
    }

    /// From `first` to `last`, both inside; `None` if they are in the wrong order.
    pub fn inclusive(first: A, last: A) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The page of that size which holds `addr`.
    pub fn page_of(addr: A, size: PageSize) -> Self {
        let mask = size.bytes() - 1;
        Self { first: A::from_raw(addr.raw() & !mask), last: A::from_raw(addr.raw() | mask) }
    }

    /// The first address.
    pub fn first(self) -> A {
        self.first
    }

    /// The last address, inside the range.
    pub fn last(self) -> A {
        self.last
    }

    /// Length in bytes, 1 to 2^64.
    pub fn bytes(self) -> u128 {
        u128::from(self.last.raw() - self.first.raw()) + 1
    }

    /// Whether `addr` lies inside.
    pub fn contains(self, addr: A) -> bool {
        self.first <= addr && addr <= self.last
    }

    /// Whether all of `other` lies inside.
    pub fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether the two share an address.
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// What the two share.
    pub fn intersection(self, other: Self) -> Option<Self> {
        Self::inclusive(self.first.max(other.first), self.last.min(other.last))
    }

    /// The smallest range that covers both.
    pub fn hull(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }

    /// Whether `next` starts right behind `self`.
    pub fn touches(self, next: Self) -> bool {
        self.last.raw().checked_add(1) == Some(next.first.raw())
    }

    /// Bytes from the start of the range to `addr`, if `addr` lies inside.
    pub fn offset_of(self, addr: A) -> Option<u64> {
        self.contains(addr).then(|| addr.raw() - self.first.raw())
    }

    /// The part of `self` that begins at `addr`, if `addr` lies inside.
    pub fn from_addr(self, addr: A) -> Option<Self> {
        self.contains(addr).then_some(Self { first: addr, last: self.last })
    }

    /// The whole pages of that size inside the range: start rounded up, end rounded down.
    pub fn pages_within(self, size: PageSize) -> Option<Self> {
        let mask = size.bytes() - 1;
        let first = self.first.raw().checked_add(mask)? & !mask;
        let past_last = (u128::from(self.last.raw()) + 1) & !u128::from(mask);
        Self::new(A::from_raw(first), past_last.checked_sub(u128::from(first))?)
    }

    /// The start of each page of that size that the range touches, ascending.
    pub fn page_starts(self, size: PageSize) -> impl Iterator<Item = A> {
        let shift = size.shift();
        (self.first.raw() >> shift..=self.last.raw() >> shift).map(move |page| A::from_raw(page << shift))
    }
}

impl<A: Address> fmt::Display for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.first.raw(), self.last.raw())
    }
}

impl<A: Address> fmt::Debug for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_reaches_the_last_byte_of_the_space_and_not_further() {
        assert_eq!(AddrRange::new(Gpa(0), 1 << 64).unwrap().bytes(), 1 << 64);
        assert!(AddrRange::new(Gpa(1), 1 << 64).is_none());
        assert!(AddrRange::new(Gpa(0), 0).is_none());
        assert!(AddrRange::inclusive(Gpa(2), Gpa(1)).is_none());
    }

    #[test]
    fn whole_pages_are_taken_inwards() {
        // The two examples of rule R1 of the slot rules.
        let inside = |first, bytes| AddrRange::new(Gpa(first), bytes).unwrap().pages_within(PageSize::Size4K);
        assert_eq!(inside(0x800, 0x1000), None);
        assert_eq!(inside(0x800, 0x2000), AddrRange::new(Gpa(0x1000), 0x1000));
        assert_eq!(inside(u64::MAX - 0xfff, 0x1000), AddrRange::new(Gpa(u64::MAX - 0xfff), 0x1000));
        assert_eq!(inside(u64::MAX - 0xffe, 0xfff), None);
    }

    #[test]
    fn neighbours_overlap_and_intersection() {
        let range = |first, last| AddrRange::inclusive(Gpa(first), Gpa(last)).unwrap();
        assert!(range(0, 9).touches(range(10, 11)));
        assert!(!range(0, u64::MAX).touches(range(0, 1)));
        assert!(range(0, 9).overlaps(range(9, 20)));
        assert_eq!(range(0, 9).intersection(range(5, 20)), Some(range(5, 9)));
        assert_eq!(range(0, 9).intersection(range(10, 20)), None);
    }

    #[test]
    fn page_starts_cover_every_touched_page() {
        let starts: Vec<_> = AddrRange::new(Gva(0x1fff), 2).unwrap().page_starts(PageSize::Size4K).collect();
        assert_eq!(starts, [Gva(0x1000), Gva(0x2000)]);
        let top = AddrRange::new(Gva(u64::MAX), 1).unwrap();
        assert_eq!(top.page_starts(PageSize::Size4K).collect::<Vec<_>>(), [Gva(u64::MAX - 0xfff)]);
    }
}
