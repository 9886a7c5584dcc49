//! Remembered pages, and what they are to an access.

use memory_model::PageSize;

use crate::access::Access;
use crate::fault::{Fault, Stop};
use crate::format::Format;
use crate::judge::{Found, judge};
use crate::paging::Paging;
use crate::quick::Ask;
use crate::walk::{Flags, Leaf};

/// A remembered page: what of its walk the format cannot tell again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Its leaf, with the flags that accesses have set.
    entry: u64,
    /// Packed: the page's address in the bits of [`Format::FRAME`], and in all others what the table pointers above
    /// [withhold](Format::withheld).
    above: u64,
    size: PageSize,
}

/// What a remembered page is to an access.
pub(super) enum Use {
    /// Its translation.
    Done(Leaf),
    /// Of no use: D must be set in memory first.
    Walk,
}

impl Known {
    /// The leaf that an access has found, and whose flags it has set; `tables` is as in [`Start`](crate::paging::Start).
    #[inline]
    pub(super) fn new(paging: &Paging, leaf: &Leaf, tables: u64, access: Access) -> Self {
        let entry = paging.format.marked(leaf.entry, true, access.writes());
        Self { entry, above: leaf.frame() | !tables & !Format::FRAME, size: leaf.size }
    }

    /// The leaf.
    #[inline]
    pub(super) const fn entry(&self) -> u64 {
        self.entry
    }

    /// Its translation of an address.
    #[inline(always)]
    pub(super) const fn at(&self, format: &Format, address: u64) -> Leaf {
        let page = (self.above & Format::FRAME, self.size);
        Leaf::new(format.offer(), address, page, self.entry, self.withheld(format))
    }

    /// What all entries of its walk withhold.
    #[inline(always)]
    const fn withheld(&self, format: &Format) -> u64 {
        self.above | format.withheld(self.entry)
    }

    /// Its translation of an address, if nothing about the access is unusual.
    #[inline(always)]
    pub(super) fn quick(&self, ask: &Ask<'_>, address: u64) -> Option<Leaf> {
        let leaf = self.at(&ask.paging.format, address);
        ask.allows(&leaf).then_some(leaf)
    }

    /// The rights that are remembered decide, whatever the tables now say.
    pub(super) fn judged(
        &self,
        paging: &Paging,
        address: u64,
        access: Access,
        flags: Flags,
    ) -> Result<Use, Fault> {
        let format = &paging.format;
        let granted = format.granted(!self.withheld(format), self.entry);
        let found = Found { tables: !self.above, granted, leaf: self.entry };
        if let Err(denial) = judge(paging, access, found) {
            return Err(Stop::Denied(denial).event(format, access, paging.controls));
        }
        let unmarked = format.marked(self.entry, true, access.writes()) != self.entry;
        Ok(if unmarked && flags == Flags::Set { Use::Walk } else { Use::Done(self.at(format, address)) })
    }

    /// Whether it is a piece of the page around `address`. `piece` is the piece's own address.
    pub(super) const fn is_piece(&self, piece: u64, address: u64) -> bool {
        (piece ^ address) & !(self.size.bytes() - 1) == 0
    }
}
