//! One range of a flat view.

use alloc::sync::Arc;
use core::fmt;

use crate::{AddrRange, DirtyClients, Gpa, Hva, RamBlock, RegionId, RegionKind};

/// A piece of one region, as the guest sees it (QEMU's `FlatRange` and `MemoryRegionSection`).
#[derive(Clone, Debug)]
pub struct FlatRange {
    /// Where the guest sees it.
    pub range: AddrRange<Gpa>,
    /// The region it comes from: one that terminates a look-up (rule R1).
    pub region: RegionId,
    /// That region's name.
    pub name: Arc<str>,
    /// That region's kind.
    pub kind: RegionKind,
    /// Bytes from the region's start to the start of this piece.
    pub offset: u64,
    /// Read-only by the region itself or by anything on the way to it (rule R13).
    pub readonly: bool,
    /// Non-volatile by the region itself or by anything on the way to it (rule R13).
    pub nonvolatile: bool,
    /// Unmergeable by the region itself or by anything on the way to it (rules R13, R17).
    pub unmergeable: bool,
    /// A ROM device whose reads are direct (rule R7).
    pub romd: bool,
    /// Who wants to know of writes here.
    pub dirty_mask: DirtyClients,
}

impl FlatRange {
    /// The memory behind it that a guest can map, if there is any.
    pub fn ram(&self) -> Option<&Arc<RamBlock>> {
        self.kind.ram()
    }

    /// Bytes from the region's start to `gpa`, if `gpa` lies in this range.
    pub fn region_offset(&self, gpa: Gpa) -> Option<u64> {
        Some(self.offset + self.range.offset_of(gpa)?)
    }

    /// Where this process sees the byte at `gpa`; `None` for devices and outside the range.
    pub fn hva(&self, gpa: Gpa) -> Option<Hva> {
        self.ram()?.hva().checked_add(self.region_offset(gpa)?)
    }

    /// Whether two ranges show the same bytes of the same region with the same rights; who logs writes is not
    /// asked (rule R25).
    pub fn same_as(&self, other: &Self) -> bool {
        self.range == other.range && self.offset == other.offset && self.same_memory(other)
    }

    /// Whether `next` goes on where `self` ends, in the guest and in the region (rule R17).
    pub(super) fn continues_in(&self, next: &Self) -> bool {
        self.range.touches(next.range)
            && u128::from(self.offset) + self.range.bytes() == u128::from(next.offset)
            && self.same_memory(next)
            && self.dirty_mask == next.dirty_mask
            && !self.unmergeable
    }

    /// The part of it that lies in `window`.
    pub(crate) fn clip(&self, window: AddrRange<Gpa>) -> Option<Self> {
        let range = self.range.intersection(window)?;
        Some(Self { range, offset: self.region_offset(range.first())?, ..self.clone() })
    }

    fn same_memory(&self, other: &Self) -> bool {
        self.region == other.region
            && self.readonly == other.readonly
            && self.nonvolatile == other.nonvolatile
            && self.unmergeable == other.unmergeable
            && self.romd == other.romd
    }
}

impl fmt::Display for FlatRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let volatile = if self.nonvolatile { "nv-" } else { "" };
        let kind = match &self.kind {
            _ if self.readonly => "rom",
            RegionKind::Ram(_) => "ram",
            RegionKind::RamDevice(_) => "ramd",
            RegionKind::RomDevice { .. } if self.romd => "romd",
            _ => "i/o",
        };
        let (first, last) = (self.range.first().0, self.range.last().0);
        write!(f, "{first:016x}-{last:016x} ({volatile}{kind}): {}", self.name)?;
        if self.offset != 0 { write!(f, " @{:016x}", self.offset) } else { Ok(()) }
    }
}
