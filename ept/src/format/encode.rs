//! Building entries: the same rows, read the other way.

use memory_model::PageSize;

use super::{Caching, Entry, Format, Kind, MemoryType, Role};
use crate::access::Rights;
use crate::error::Error;

/// What a new leaf says besides its frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Attributes {
    /// What it grants.
    pub rights: Rights,
    /// The kind of memory.
    pub caching: Caching,
    /// Bits that the format leaves to software, and A and D: set as they are.
    pub software: u64,
}

impl Attributes {
    /// RAM with these rights, in tables of that kind.
    pub const fn ram(kind: Kind, rights: Rights) -> Self {
        let caching = match kind {
            Kind::Ept => Caching::EPT_RAM,
            Kind::Ia32e | Kind::Npt => Caching::PAT_RAM,
        };
        Self { rights, caching, software: 0 }
    }
}

impl Format {
    /// An entry that points to the table at that physical address, and grants everything.
    pub fn table(&self, table: u64) -> Result<u64, Error> {
        self.check_output(table, PageSize::Size4K)?;
        let all = self.grants.into_iter().fold(self.present, |bits, grant| bits | grant);
        Ok(table | all & !self.inverted)
    }

    /// A leaf of that size for the page at physical address `frame`.
    pub fn leaf(&self, size: PageSize, frame: u64, attributes: Attributes) -> Result<u64, Error> {
        let Attributes { rights, caching, software } = attributes;
        let level = size.level();
        if !self.has_size(size) {
            return Err(Error::PageSize { size });
        }
        self.check_output(frame, size)?;
        let free = self.bits(Role::Ignored, level, true) | self.accessed | self.dirty;
        if software & !free != 0 {
            return Err(Error::SoftwareBits { bits: software & !free, size });
        }
        let fixed =
            frame | self.level[level as usize].page_size | software | self.caching_bits(caching, level)?;
        self.with_rights(level, fixed, rights)
    }

    /// The same leaf with other rights.
    pub(crate) fn with_rights(&self, level: u8, leaf: u64, rights: Rights) -> Result<u64, Error> {
        let order = [Rights::READ, Rights::WRITE, Rights::EXEC, Rights::USER];
        let mut granting = leaf ^ self.inverted;
        // Absent bits first: a right that shares its bit with "present" must not take it away again.
        for granted in [false, true] {
            for (right, bit) in order.into_iter().zip(self.grants) {
                match rights.contains(right) {
                    true if granted => granting |= bit,
                    false if !granted => granting &= !bit,
                    _ => {}
                }
            }
        }
        let entry = granting ^ self.inverted;
        match self.decode(level, entry) {
            Entry::Leaf(..) if self.rights(entry) == rights => Ok(entry),
            _ => Err(Error::Rights { rights }),
        }
    }

    /// Entry `index` of the table that takes the place of a large leaf at `level` (2 or 3).
    pub(crate) fn split(&self, level: u8, leaf: u64, index: u16) -> u64 {
        let below = level - 1;
        let pat = leaf & self.level[level as usize].page_attribute;
        let kept = leaf & !self.level[level as usize].frame & !self.level[level as usize].page_size & !pat;
        let page_size = self.level[below as usize].page_size;
        let pat = if pat == 0 { 0 } else { self.level[below as usize].page_attribute };
        let frame = (leaf & self.level[level as usize].frame) + (u64::from(index) << shift_of(below));
        kept | page_size | pat | frame
    }

    /// What kind of memory a leaf maps.
    #[inline]
    pub fn caching(&self, level: u8, leaf: u64) -> Caching {
        match self.kind {
            Kind::Ept => Caching::Ept {
                memory_type: MemoryType::from_raw((leaf >> 3 & 0x7) as u8).unwrap_or(MemoryType::Uncacheable),
                ignore_pat: leaf & self.ignore_pat != 0,
            },
            Kind::Ia32e | Kind::Npt => {
                let bits = self.pat_bits(level).map(|bit| u8::from(leaf & bit != 0));
                Caching::Pat(bits[0] | bits[1] << 1 | bits[2] << 2)
            }
        }
    }

    fn caching_bits(&self, caching: Caching, level: u8) -> Result<u64, Error> {
        match (self.kind, caching) {
            (Kind::Ept, Caching::Ept { memory_type, ignore_pat }) => {
                Ok((memory_type as u64) << 3 | if ignore_pat { self.ignore_pat } else { 0 })
            }
            (Kind::Ia32e | Kind::Npt, Caching::Pat(index)) if index < 8 => {
                let set = self.pat_bits(level).into_iter().enumerate().filter(|(n, _)| index >> n & 1 != 0);
                Ok(set.fold(0, |bits, (_, bit)| bits | bit))
            }
            _ => Err(Error::Caching),
        }
    }

    /// The bits of a PAT index in a leaf, lowest first.
    #[inline]
    const fn pat_bits(&self, level: u8) -> [u64; 3] {
        [self.cache_bits[0], self.cache_bits[1], self.level[level as usize].page_attribute]
    }

    fn check_output(&self, address: u64, size: PageSize) -> Result<(), Error> {
        if address & (size.bytes() - 1) != 0 {
            return Err(Error::Misaligned { address, size });
        }
        if address > self.max_phy_addr.last() {
            return Err(Error::OutputRange { address, bits: self.max_phy_addr.bits() });
        }
        Ok(())
    }
}

/// log2 of what one entry at `level` spans.
#[inline]
pub(crate) const fn shift_of(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Ia32e, Levels, MaxPhyAddr};

    /// The PAT bit lies elsewhere in a PTE than in a large leaf.
    #[test]
    fn the_pieces_of_a_large_leaf_map_the_same_memory() {
        let max_phy_addr = MaxPhyAddr::MAX;
        let format =
            Format::ia32e(Ia32e { levels: Levels::Four, max_phy_addr, no_execute: true, page_1g: true });
        let rights = Rights::READ | Rights::USER;
        for (index, size, piece) in (0..8).flat_map(|index| {
            [(index, PageSize::Size2M, PageSize::Size4K), (index, PageSize::Size1G, PageSize::Size2M)]
        }) {
            let page = Attributes { rights, caching: Caching::Pat(index), software: 1 << 9 | 1 << 5 };
            let leaf = format.leaf(size, 5 << 30, page).unwrap();
            for n in [0, 1, 511] {
                let frame = (5 << 30) + u64::from(n) * piece.bytes();
                let expected = format.leaf(piece, frame, page).unwrap();
                assert_eq!(format.split(size.level(), leaf, n), expected, "{size} {index} {n}");
            }
        }
    }
}
