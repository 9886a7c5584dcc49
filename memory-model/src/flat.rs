//! The flat view: what the guest sees of the tree, as sorted ranges that do not overlap.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::{AddrRange, Gpa, Hva, RamBlock, RegionId, RegionKind, RegionTree};

/// A piece of one region, as the guest sees it (QEMU's `FlatRange` and `MemoryRegionSection`).
#[derive(Clone, Debug)]
pub struct FlatRange {
    /// Where the guest sees it.
    pub range: AddrRange<Gpa>,
    /// The region it comes from: RAM or a device.
    pub region: RegionId,
    /// That region's name.
    pub name: Arc<str>,
    /// That region's kind.
    pub kind: RegionKind,
    /// Bytes from the region's start to the start of this piece.
    pub offset: u64,
    /// Read-only by the region itself or by anything on the way to it (rule R13).
    pub readonly: bool,
}

impl FlatRange {
    /// The memory behind it, unless it is a device.
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

    /// Whether two ranges show the same bytes of the same region with the same rights (rule R25).
    pub fn same_as(&self, other: &Self) -> bool {
        self.range == other.range && self.same_memory(other) && self.offset == other.offset
    }

    /// Whether `next` goes on where `self` ends, in the guest and in the region (rule R17).
    fn continues_in(&self, next: &Self) -> bool {
        self.range.touches(next.range)
            && self.same_memory(next)
            && u128::from(self.offset) + self.range.bytes() == u128::from(next.offset)
    }

    fn same_memory(&self, other: &Self) -> bool {
        self.region == other.region && self.readonly == other.readonly
    }
}

impl fmt::Display for FlatRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match (self.ram(), self.readonly) {
            (None, _) => "i/o",
            (Some(_), false) => "ram",
            (Some(_), true) => "rom",
        };
        write!(f, "{:016x}-{:016x} ({kind}): {}", self.range.first().0, self.range.last().0, self.name)?;
        if self.offset != 0 { write!(f, " @{:016x}", self.offset) } else { Ok(()) }
    }
}

/// An immutable snapshot of what the guest sees: sorted, disjoint, maximally merged (rules R16, R19).
#[derive(Clone, Debug, Default)]
pub struct FlatView {
    ranges: Vec<FlatRange>,
}

impl FlatView {
    /// Renders a tree as seen from its root.
    pub fn render(tree: &RegionTree) -> Self {
        let mut renderer = Renderer { tree, taken: BTreeMap::new() };
        let everything = Window { first: 0, last: u64::MAX.into() };
        renderer.render(tree.root(), 0, everything, false);
        Self::merge(renderer.taken.into_values())
    }

    fn merge(ranges: impl Iterator<Item = FlatRange>) -> Self {
        let mut merged: Vec<FlatRange> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if last.continues_in(&range) => {
                    last.range = AddrRange::inclusive(last.range.first(), range.range.last())
                        .expect("the next range lies behind the last one");
                }
                _ => merged.push(range),
            }
        }
        Self { ranges: merged }
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[FlatRange] {
        &self.ranges
    }

    /// The range that holds `gpa`.
    pub fn find(&self, gpa: Gpa) -> Option<&FlatRange> {
        let index = self.ranges.partition_point(|range| range.range.last() < gpa);
        self.ranges.get(index).filter(|range| range.range.contains(gpa))
    }

    /// Where this process sees the byte at `gpa`; `None` where no RAM is.
    pub fn hva(&self, gpa: Gpa) -> Option<Hva> {
        self.find(gpa)?.hva(gpa)
    }
}

impl fmt::Display for FlatView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ranges.iter().try_for_each(|range| writeln!(f, "  {range}"))
    }
}

/// Guest addresses while rendering. An alias can begin before address 0 and end behind 2^64, hence the
/// wide, signed numbers; what survives the clipping to the root is a `u64` again.
#[derive(Clone, Copy)]
struct Window {
    first: i128,
    last: i128,
}

impl Window {
    fn clip(self, other: Self) -> Option<Self> {
        let (first, last) = (self.first.max(other.first), self.last.min(other.last));
        (first <= last).then_some(Self { first, last })
    }
}

struct Renderer<'a> {
    tree: &'a RegionTree,
    /// What is seen so far, by first address. Rendered in the order of sight: first come, first seen.
    taken: BTreeMap<u64, FlatRange>,
}

impl Renderer<'_> {
    /// Renders `id`, whose container starts at `base`, into what `window` leaves free.
    fn render(&mut self, id: RegionId, base: i128, window: Window, readonly: bool) {
        let region = self.tree.get(id).expect("edits keep every id in the tree valid");
        let start = base + i128::from(region.offset());
        let whole = Window { first: start, last: start + region.size() as i128 - 1 };
        let Some(window) = whole.clip(window).filter(|_| region.enabled()) else { return };
        let readonly = readonly || region.readonly();
        if let RegionKind::Alias { target, offset } = *region.kind() {
            // The target's own place is ignored (rule R3): undo it.
            let own = self.tree.get(target).map_or(0, |target| target.offset());
            return self.render(target, start - i128::from(offset) - i128::from(own), window, readonly);
        }
        for &child in region.subregions() {
            self.render(child, start, window, readonly);
        }
        if region.kind().terminates() {
            for gap in self.gaps(window) {
                let piece = FlatRange {
                    range: gap,
                    region: id,
                    name: region.name().clone(),
                    kind: region.kind().clone(),
                    offset: (i128::from(gap.first().0) - start) as u64,
                    readonly,
                };
                self.taken.insert(gap.first().0, piece);
            }
        }
    }

    /// The parts of `window` that nothing has taken yet.
    fn gaps(&self, window: Window) -> Vec<AddrRange<Gpa>> {
        // Clipped to the root's window, so both ends are 64-bit addresses.
        let (mut next, last) = (window.first as u64, window.last as u64);
        let before = self.taken.range(..next).next_back();
        let within = self.taken.range(next..=last);
        let mut gaps = Vec::new();
        for (_, taken) in before.into_iter().chain(within) {
            let taken = taken.range;
            if taken.last().0 < next {
                continue;
            }
            if let Some(end) = taken.first().0.checked_sub(1) {
                gaps.extend(AddrRange::inclusive(Gpa(next), Gpa(end)));
            }
            match taken.last().0.checked_add(1) {
                Some(after) => next = after,
                None => return gaps,
            }
        }
        gaps.extend(AddrRange::inclusive(Gpa(next), Gpa(last)));
        gaps
    }
}
