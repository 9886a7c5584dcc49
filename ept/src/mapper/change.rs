//! What each operation makes of one entry.

use memory_model::PageSize;

use super::Sizes;
use super::operation::{Span, Spot};
use crate::access::Rights;
use crate::error::Error;
use crate::format::{Attributes, Entry, Format};

/// What becomes of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum New {
    /// This value, which may be the old one.
    Entry(u64),
    /// A pointer to a table of smaller ones, where the same question is asked again.
    Table,
}

/// One operation: what it makes of the entries of its range. It is asked before anything is written, and again when
/// it is.
pub(super) trait Change {
    /// Whether tables go: those wholly inside the range at one stroke, others once they are empty.
    const TAKES_TABLES: bool = false;

    /// What an entry at level 1, absent or a leaf, becomes.
    fn page(&self, format: &Format, address: u64, entry: u64) -> Result<u64, Error>;

    /// What an entry above, absent or a leaf, becomes.
    fn entry(&self, format: &Format, spot: Spot, entry: u64) -> Result<New, Error>;

    /// Whether there may be a table.
    fn table(&self, _format: &Format, _spot: Spot, _entry: u64) -> Result<(), Error> {
        Ok(())
    }
}

/// Absent entries become leaves.
pub(super) struct Map {
    first: u64,
    frame: u64,
    /// Leaves of frame 0, by level.
    leaves: [u64; 4],
    /// The highest level with leaves, and the lowest.
    highest: u8,
    lowest: u8,
}

impl Map {
    pub fn new(
        format: &Format,
        span: Span,
        frame: u64,
        sizes: Sizes,
        page: Attributes,
    ) -> Result<Self, Error> {
        let (highest, lowest) = match sizes {
            Sizes::Only(size) => (size, size),
            Sizes::UpTo(bound) => {
                let fits = |size: &PageSize| {
                    let congruent = (span.first ^ frame) & (size.bytes() - 1) == 0;
                    *size <= bound && congruent && format.has_size(*size)
                };
                let largest = PageSize::ALL.into_iter().rfind(fits);
                (largest.unwrap_or(PageSize::Size4K), PageSize::Size4K)
            }
        };
        if !format.has_size(lowest) {
            return Err(Error::PageSize { size: lowest });
        }
        span.check_alignment(format, lowest)?;
        if frame & (lowest.bytes() - 1) != 0 {
            return Err(Error::Misaligned { address: frame, size: lowest });
        }
        let width = format.max_phy_addr();
        if frame.checked_add(span.last - span.first).is_none_or(|last| last > width.last()) {
            return Err(Error::OutputRange { address: frame.max(width.last() + 1), bits: width.bits() });
        }
        let mut leaves = [0; 4];
        for size in PageSize::ALL.into_iter().filter(|size| (lowest..=highest).contains(size)) {
            if format.has_size(size) {
                leaves[size.level() as usize] = format.leaf(size, 0, page)?;
            }
        }
        Ok(Self { first: span.first, frame, leaves, highest: highest.level(), lowest: lowest.level() })
    }

    #[inline]
    fn leaf(&self, level: u8, address: u64) -> u64 {
        self.leaves[level as usize] | (self.frame + (address - self.first))
    }

    #[cold]
    fn overlap(&self, format: &Format, level: u8, address: u64, entry: u64) -> Error {
        Error::Overlap { address: format.extend(address.max(self.first)), level, entry }
    }
}

impl Change for Map {
    #[inline]
    fn page(&self, format: &Format, address: u64, entry: u64) -> Result<u64, Error> {
        match format.is_present(entry) {
            true => Err(self.overlap(format, 1, address, entry)),
            false => Ok(self.leaf(1, address)),
        }
    }

    fn entry(&self, format: &Format, spot: Spot, entry: u64) -> Result<New, Error> {
        let Spot { level, address, whole } = spot;
        if format.is_present(entry) {
            return Err(self.overlap(format, level, address, entry));
        }
        let fits = whole && level <= self.highest && self.leaves[level as usize] != 0;
        Ok(if fits { New::Entry(self.leaf(level, address)) } else { New::Table })
    }

    fn table(&self, format: &Format, spot: Spot, entry: u64) -> Result<(), Error> {
        match spot.level > self.lowest {
            true => Ok(()),
            false => Err(self.overlap(format, spot.level, spot.address, entry)),
        }
    }
}

/// All entries become zero.
pub(super) struct Unmap;

impl Change for Unmap {
    const TAKES_TABLES: bool = true;

    #[inline]
    fn page(&self, _format: &Format, _address: u64, _entry: u64) -> Result<u64, Error> {
        Ok(0)
    }

    fn entry(&self, format: &Format, spot: Spot, entry: u64) -> Result<New, Error> {
        Ok(match spot.whole {
            true => New::Entry(0),
            false if format.is_present(entry) => New::Table,
            false => New::Entry(entry),
        })
    }
}

/// Leaves get other rights.
pub(super) struct Protect {
    rights: Rights,
    /// The bits for these rights, among all that are for rights.
    bits: u64,
    among: u64,
}

impl Protect {
    pub fn new(format: &Format, rights: Rights) -> Result<Self, Error> {
        let among = format.granted(u64::MAX, u64::MAX);
        let bits = format.with_rights(1, format.table(0)?, rights)? & among;
        Ok(Self { rights, bits, among })
    }

    #[inline]
    fn leaf(&self, format: &Format, level: u8, entry: u64) -> Result<u64, Error> {
        if !format.is_present(entry) {
            return Ok(entry);
        }
        let new = entry & !self.among | self.bits;
        let good = format.is_plain_leaf(level, new) || matches!(format.decode(level, new), Entry::Leaf(..));
        if good { Ok(new) } else { Err(Error::Rights { rights: self.rights }) }
    }
}

impl Change for Protect {
    #[inline]
    fn page(&self, format: &Format, _address: u64, entry: u64) -> Result<u64, Error> {
        self.leaf(format, 1, entry)
    }

    fn entry(&self, format: &Format, spot: Spot, entry: u64) -> Result<New, Error> {
        let new = self.leaf(format, spot.level, entry)?;
        Ok(if spot.whole || new == entry { New::Entry(new) } else { New::Table })
    }
}

/// The leaf of this level becomes a table.
pub(super) struct Split(pub u8);

impl Change for Split {
    fn page(&self, _format: &Format, _address: u64, entry: u64) -> Result<u64, Error> {
        Ok(entry)
    }

    fn entry(&self, _format: &Format, spot: Spot, entry: u64) -> Result<New, Error> {
        Ok(if spot.level == self.0 { New::Table } else { New::Entry(entry) })
    }
}
