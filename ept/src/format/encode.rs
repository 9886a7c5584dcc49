//! Building entries: the same rows, read the other way.

use memory_model::PageSize;

use super::memory_type::pat_bits;
use super::{Caching, Entry, FRAME_HIGH_SHIFT, Format, Kind, Role};
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
            _ => Caching::PAT_RAM,
        };
        Self { rights, caching, software: 0 }
    }
}

impl Format {
    /// An entry that points to the table at that physical address, and grants everything.
    pub fn table(&self, table: u64) -> Result<u64, Error> {
        self.check_output(table, PageSize::Size4K)?;
        // P where there is one; NX is among the granting bits, and granting when clear.
        let present = self.bits(Role::Present, 1, true);
        Ok(table | present | self.all_grants & !self.leaf_grants & self.good)
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
        let masks = &self.level[level as usize];
        let frame = frame & masks.frame | frame >> FRAME_HIGH_SHIFT & masks.frame_high;
        let fixed = frame | masks.page_size | software | self.caching_bits(caching, level)?;
        self.with_rights(level, fixed, rights)
    }

    /// The same leaf with other rights.
    pub(crate) fn with_rights(&self, level: u8, leaf: u64, rights: Rights) -> Result<u64, Error> {
        // All off first: several rights may share one bit with "present".
        let mut granting = leaf & !self.all_grants;
        for (n, bit) in self.grants.into_iter().enumerate() {
            if rights.bits() >> n & 1 != 0 {
                granting |= bit & self.all_grants;
            }
        }
        let entry = granting ^ !self.good & self.all_grants;
        match self.decode(level, entry) {
            Entry::Leaf(..) if self.rights(entry) == rights => Ok(entry),
            _ => Err(Error::Rights { rights }),
        }
    }

    /// Entry `index` of the table that takes the place of a large leaf at `level` (2 or 3).
    pub(crate) fn split(&self, level: u8, leaf: u64, index: u16) -> u64 {
        let [below, large] = [level - 1, level].map(|level| &self.level[level as usize]);
        let pat = leaf & self.bits(Role::PageAttribute, level, true);
        let kept = leaf & !large.frame & !large.page_size & !pat;
        let pat = if pat == 0 { 0 } else { self.bits(Role::PageAttribute, level - 1, true) };
        let frame = (leaf & large.frame) + (u64::from(index) << self.shift(level - 1));
        kept | below.page_size | pat | frame
    }

    /// What kind of memory a leaf maps.
    #[inline]
    pub const fn caching(&self, level: u8, leaf: u64) -> Caching {
        self.kind.caching(level, leaf)
    }

    fn caching_bits(&self, caching: Caching, level: u8) -> Result<u64, Error> {
        match (self.kind, caching) {
            (Kind::Ept, Caching::Ept { memory_type, ignore_pat }) => {
                let ignore_pat = if ignore_pat { self.bits(Role::IgnorePat, level, true) } else { 0 };
                Ok((memory_type as u64) << 3 | ignore_pat)
            }
            (Kind::Ept, Caching::Pat(_)) | (_, Caching::Ept { .. }) => Err(Error::Caching),
            (_, Caching::Pat(index)) if index < 8 => {
                let set = pat_bits(level).into_iter().enumerate().filter(|(n, _)| index >> n & 1 != 0);
                Ok(set.fold(0, |bits, (_, bit)| bits | bit))
            }
            _ => Err(Error::Caching),
        }
    }

    fn check_output(&self, address: u64, size: PageSize) -> Result<(), Error> {
        if address & (size.bytes() - 1) != 0 {
            return Err(Error::Misaligned { address, size });
        }
        let bits = match (self.kind, size) {
            (Kind::Legacy32, PageSize::Size4K) => 32,
            (Kind::Legacy32, _) => self.max_phy_addr.bits().min(40),
            _ => self.max_phy_addr.bits(),
        };
        match address >> bits {
            0 => Ok(()),
            _ => Err(Error::OutputRange { address, bits }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Ia32e, Levels, MaxPhyAddr};

    /// The PAT bit lies elsewhere in a PTE than in a large leaf.
    #[test]
    fn the_pieces_of_a_large_leaf_map_the_same_memory() {
        let format = Format::ia32e(Ia32e::new(Levels::Four, MaxPhyAddr::MAX));
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
