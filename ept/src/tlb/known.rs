//! Remembered pages, and what they are to an access.

use crate::access::{Access, Controls, ProtectionKeys, Rights};
use crate::fault::{Fault, Stop};
use crate::judge::{Found, judge};
use crate::paging::Paging;
use crate::walk::{Flags, Leaf};

/// A remembered page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// Its leaf, with the flags that the access has set which found it.
    leaf: Leaf,
    /// AND of the table pointers above, for the rules that look at them alone.
    tables: u64,
}

/// What a remembered page is to an access.
pub(super) enum Use {
    /// Its translation.
    Done(Leaf),
    /// Of no use: D must be set in memory first.
    Walk,
}

impl Known {
    #[inline]
    pub(super) fn new(paging: &Paging, mut leaf: Leaf, tables: u64, access: Access) -> Self {
        leaf.entry = paging.format.marked(leaf.entry, true, access.writes());
        Self::marked(leaf, tables)
    }

    /// A page whose flags were set before.
    #[inline]
    pub(super) const fn marked(leaf: Leaf, tables: u64) -> Self {
        Self { leaf, tables }
    }

    /// The leaf.
    #[inline]
    pub(super) const fn entry(&self) -> u64 {
        self.leaf.entry
    }

    /// The translation of an access that is known to pass.
    #[inline]
    pub(super) const fn at(&self, address: u64) -> Leaf {
        self.leaf.at(address)
    }

    /// Its leaf, as translated for the access that found it.
    pub(super) const fn leaf(&self) -> Leaf {
        self.leaf
    }

    /// The rights that are remembered decide, whatever the tables now say.
    pub(super) fn judged(
        &self,
        paging: &Paging,
        address: u64,
        access: Access,
        flags: Flags,
    ) -> Result<Use, Fault> {
        let Self { leaf, tables } = *self;
        let format = &paging.format;
        let granted = format.granted(!leaf.withheld(), leaf.entry);
        let found = Found { tables, granted, leaf: leaf.entry };
        if let Err(denial) = judge(paging, access, found) {
            return Err(Stop::Denied(denial).event(format, access, paging.controls));
        }
        let unmarked = format.marked(leaf.entry, true, access.writes()) != leaf.entry;
        Ok(if unmarked && flags == Flags::Set { Use::Walk } else { Use::Done(leaf.at(address)) })
    }

    /// Whether it is a piece of the page around `address`. `piece` is the piece's own address.
    pub(super) const fn is_piece(&self, piece: u64, address: u64) -> bool {
        (piece ^ address) & !(self.leaf.size.bytes() - 1) == 0
    }
}

/// The accesses that a remembered page has already let through, so that they need not be judged again: under the
/// control bits and keys of that time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Passed {
    controls: Controls,
    keys: ProtectionKeys,
    /// One bit for each kind of access, see [`bit`].
    accesses: u64,
}

/// The bit of an access; none for one to a shadow stack.
#[inline]
const fn bit(access: Access) -> u64 {
    let Access { does, user, ac } = access;
    let paging = does.contains(Rights::PAGING_WRITE);
    let kind =
        does.intersection(Rights::RWX).bits() | (user as u8) << 3 | (ac as u8) << 4 | (paging as u8) << 5;
    if does.contains(Rights::SHADOW_STACK) { 0 } else { 1 << kind }
}

impl Passed {
    #[inline]
    pub(super) const fn new(paging: &Paging, access: Access) -> Self {
        Self { controls: paging.controls, keys: paging.keys, accesses: bit(access) }
    }

    #[inline]
    pub(super) fn has(&self, paging: &Paging, access: Access) -> bool {
        self.accesses & bit(access) != 0 && self.controls == paging.controls && self.keys == paging.keys
    }

    pub(super) fn add(&mut self, paging: &Paging, access: Access) {
        let now = Self::new(paging, access);
        let same = self.controls == now.controls && self.keys == now.keys;
        *self = Self { accesses: now.accesses | if same { self.accesses } else { 0 }, ..now };
    }
}
