//! Where an access goes: the flat view knows what aliases show, IOMMUs send it on.

use crate::access::{Bus, nesting};
use crate::{Access, AddrRange, FlatRange, FlatView, Gpa, MemTxAttrs, MemTxError, RamBlock, RegionKind};

/// So many IOMMUs can be one behind the other.
const MAX_IOMMUS: usize = 8;
/// Where an IOMMU gives no translation, it gives none for the rest of so many bytes.
const UNTRANSLATED: u64 = 0x1000;

/// What an access meets at its first byte.
pub(super) enum Place<'v> {
    /// A piece of a region.
    Region {
        range: &'v FlatRange,
        /// Where in the region.
        offset: u64,
        /// From there to the end of the piece.
        bytes: usize,
    },
    /// Nothing.
    Nothing {
        gpa: Gpa,
        /// From there to where something begins.
        bytes: usize,
    },
    /// The way there leads nowhere.
    Failed(MemTxError),
}

impl<'v> Bus<'v> {
    /// The commonest case by far: the whole access in one piece of RAM, or of ROM to be read. Gives its range and
    /// its block, and where in the block it begins.
    #[inline]
    pub(super) fn plain_memory(
        &self,
        gpa: Gpa,
        len: usize,
        access: Access,
    ) -> Option<(&'v FlatRange, &'v RamBlock, u64)> {
        let range = self.view.find(gpa)?;
        let RegionKind::Ram(block) = &range.kind else { return None };
        let fits = len <= bytes_between(gpa, range.range.last());
        let allowed = !(range.readonly && access.contains(Access::WRITE));
        (fits && allowed).then(|| (range, &**block, range.offset + (gpa.0 - range.range.first().0)))
    }
}

/// Follows an access of `len` bytes to its end, and gives it to `then` with the length that goes there at most: a
/// translated page limits it, for a device too.
pub(super) fn locate<R>(
    bus: &Bus<'_>,
    gpa: Gpa,
    len: usize,
    access: Access,
    then: impl FnOnce(Place<'_>, usize) -> R,
) -> R {
    follow(bus.view, gpa, len, access, bus.attrs, 0, then)
}

fn follow<R>(
    view: &FlatView,
    gpa: Gpa,
    len: usize,
    access: Access,
    attrs: MemTxAttrs,
    passed: usize,
    then: impl FnOnce(Place<'_>, usize) -> R,
) -> R {
    let Some(range) = view.find(gpa) else {
        return then(Place::Nothing { gpa, bytes: hole(view, gpa) }, len);
    };
    let within = gpa.0 - range.range.first().0;
    let (offset, bytes) = (range.offset + within, bytes_between(gpa, range.range.last()));
    let ops = match &range.kind {
        RegionKind::Iommu(ops) => ops,
        RegionKind::Reservation => return then(Place::Nothing { gpa, bytes }, len),
        _ => return then(Place::Region { range, offset, bytes }, len),
    };
    let len = len.min(bytes);
    if passed == MAX_IOMMUS {
        return then(Place::Failed(MemTxError::Translation), len);
    }
    let entry = match nesting::enter_iommu(&**ops) {
        Ok(_inside) => ops.translate(offset, access, attrs),
        Err(error) => return then(Place::Failed(error), len),
    };
    match entry.filter(|entry| entry.perm.contains(access)) {
        Some(entry) => {
            let len = len.min(entry.bytes_from(offset));
            follow(&entry.target, entry.address_of(offset), len, access, attrs, passed + 1, then)
        }
        None => {
            let bytes = (UNTRANSLATED - offset % UNTRANSLATED) as usize;
            then(Place::Nothing { gpa, bytes: len.min(bytes) }, len)
        }
    }
}

/// From `gpa`, where nothing is, to where something begins.
fn hole(view: &FlatView, gpa: Gpa) -> usize {
    let rest = AddrRange::inclusive(gpa, Gpa(u64::MAX)).expect("no address is above the last one");
    match view.overlapping(rest).next() {
        Some(next) => usize::try_from(next.range.first().0 - gpa.0).unwrap_or(usize::MAX),
        None => bytes_between(gpa, rest.last()),
    }
}

/// From `first` to `last`, both inside.
pub(super) fn bytes_between(first: Gpa, last: Gpa) -> usize {
    usize::try_from(last.0 - first.0).map_or(usize::MAX, |bytes| bytes.saturating_add(1))
}
