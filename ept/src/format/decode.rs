//! What an entry is, and what it grants.

use memory_model::PageSize;

use super::fields::{EPT, Features, IA32E, Role, bits_of};
use super::{FRAME_HIGH_SHIFT, Format, Kind, Offer, RIGHTS, ask_index};
use crate::access::{Access, Rights};
use crate::walk::Leaf;

/// What is wrong with a present entry. In EPT this is a misconfiguration, elsewhere a reserved-bit #PF.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum Misconfiguration {
    /// Rule M1: W without R.
    #[error("writable but not readable")]
    WriteWithoutRead,
    /// Rule M2: X or XU alone, on a processor without execute-only pages.
    #[error("execute-only, which the processor lacks")]
    ExecuteOnly,
    /// Rules M3, I1: these bits must be zero.
    #[error("reserved bits {0:#x} set")]
    ReservedBits(u64),
    /// Rule M4: no such memory type.
    #[error("memory type {0}")]
    MemoryType(u8),
    /// Rule M5: paging-write (bit 58) without R.
    #[error("paging-write but not readable")]
    PagingWriteWithoutRead,
}

/// What an entry turns out to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Not present: all other bits are free.
    Absent,
    /// Present, and malformed.
    Malformed(Misconfiguration),
    /// Points to the next table, at that physical address.
    Table(u64),
    /// Maps a page: its first physical address, and its size.
    Leaf(u64, PageSize),
}

impl Format {
    /// Whether the entry is present (rule P1).
    #[inline]
    pub const fn is_present(&self, entry: u64) -> bool {
        entry & self.present != 0
    }

    /// What the entry is, at that level (1 to 5). The order is that of rules M6 and F1: absent, then malformed.
    #[inline]
    pub fn decode(&self, level: u8, entry: u64) -> Entry {
        if !self.is_present(entry) {
            return Entry::Absent;
        }
        let masks = &self.level[level as usize];
        let leaf = entry & masks.leaf != 0;
        let reserved = entry & masks.reserved[usize::from(leaf)];
        // In a table pointer bits 5:3 are no memory type, but then they are reserved.
        if reserved != 0 || self.well_formed >> (entry & 0x3f) & 1 == 0 || self.lacks_read(level, entry) {
            return Entry::Malformed(self.misconfiguration(level, entry, reserved));
        }
        match self.page_size(level) {
            Some(size) if leaf => {
                let high = (entry & masks.frame_high) << FRAME_HIGH_SHIFT;
                Entry::Leaf(entry & masks.frame | high, size)
            }
            _ => Entry::Table(entry & self.table_frame()),
        }
    }

    /// Whether entries are for certain good table pointers down to one at that level, above 1; if not,
    /// [`decode`](Self::decode) tells. `withheld` is the OR of what they [withhold](Self::withheld).
    #[inline(always)]
    pub(crate) const fn are_plain_tables(&self, level: u8, withheld: u64) -> bool {
        withheld & self.level[level as usize].plain_table == 0
    }

    /// Whether an entry is for certain a good leaf. If not, [`decode`](Self::decode) tells.
    #[inline(always)]
    pub(crate) const fn is_plain_leaf(&self, level: u8, entry: u64) -> bool {
        let (masks, withheld) = (&self.level[level as usize], self.withheld(entry));
        (level == 1 || withheld & masks.leaf != 0)
            && withheld & masks.reserved[1] == 0
            && self.plain_leaf >> (withheld & 0x3f) & 1 != 0
    }

    /// The bits that no entry of a walk for that access may withhold, unless CR0.WP is clear: those that grant it, P, and
    /// what is reserved in small leaves, as that is reserved everywhere.
    #[inline(always)]
    pub(crate) const fn asked(&self, access: Access) -> u64 {
        self.asks[ask_index(access)]
    }

    /// Whether the entry that [withholds](Self::withheld) so much, but nothing that is [asked](Self::asked), is for
    /// certain a good leaf.
    #[inline(always)]
    pub(crate) const fn admits_leaf(&self, level: u8, withheld: u64) -> bool {
        let masks = &self.level[level as usize];
        let large = withheld & masks.leaf != 0 && withheld & masks.reserved[1] == 0;
        (level == 1 || large) && (!self.offer.is_ept() || self.plain_leaf >> (withheld & 0x3f) & 1 != 0)
    }

    /// Rule M5.
    #[inline]
    fn lacks_read(&self, level: u8, entry: u64) -> bool {
        self.features.contains(Features::PAGING_WRITE)
            && entry & self.level[level as usize].leaf != 0
            && entry & self.grants[0] == 0
            && entry & self.bits(Role::PagingWrite, level, true) != 0
    }

    #[cold]
    fn misconfiguration(&self, level: u8, entry: u64, reserved: u64) -> Misconfiguration {
        // Memory type 0 is good: what is left is the combination of rights.
        let combination = self.well_formed >> (entry & 0x7) & 1 == 0;
        if combination && entry & self.grants[1] != 0 {
            Misconfiguration::WriteWithoutRead
        } else if combination {
            Misconfiguration::ExecuteOnly
        } else if reserved != 0 {
            Misconfiguration::ReservedBits(reserved)
        } else if self.lacks_read(level, entry) {
            Misconfiguration::PagingWriteWithoutRead
        } else {
            Misconfiguration::MemoryType((entry >> 3 & 0x7) as u8)
        }
    }

    /// What one leaf grants by itself.
    pub fn rights(&self, entry: u64) -> Rights {
        self.merged_rights(self.mergeable(entry), entry)
    }

    /// An entry in the shape whose AND over a walk is what the walk grants (rule I4: NX is ORed).
    #[inline]
    pub(crate) const fn mergeable(&self, entry: u64) -> u64 {
        !self.withheld(entry)
    }

    /// The complement, whose OR over a walk is what the walk withholds, and its own inverse. It leaves frames as they are.
    #[inline(always)]
    pub(crate) const fn withheld(&self, entry: u64) -> u64 {
        entry ^ self.good
    }

    /// The granting bits of a walk: of the AND of all its [`mergeable`](Self::mergeable) entries, and, where only leaves have
    /// a bit, of its leaf.
    #[inline]
    pub(crate) const fn granted(&self, merged: u64, leaf: u64) -> u64 {
        (merged | leaf & self.leaf_grants) & self.all_grants
    }

    /// Whether these granting bits include that right; `right` is a single one.
    #[inline]
    pub(crate) const fn grants(&self, granted: u64, right: Rights) -> bool {
        granted & self.grant(right) != 0
    }

    /// Table pointers, in the shape of [`mergeable`](Self::mergeable), that withhold these rights and nothing else.
    pub(crate) fn tables_without(&self, rights: Rights) -> u64 {
        !rights.iter().fold(0, |withheld, right| withheld | self.grant(right))
    }

    /// The bit that grants that single right; zero where nothing does, or nothing can withhold it.
    #[inline(always)]
    pub(crate) const fn grant(&self, right: Rights) -> u64 {
        self.grants[right.bits().trailing_zeros() as usize]
    }

    /// The rights of a walk; the arguments are those of [`granted`](Self::granted).
    #[inline]
    pub(crate) fn merged_rights(&self, merged: u64, leaf: u64) -> Rights {
        self.kind.rights(self.granted(merged, leaf))
    }
}

impl Format {
    /// Where an IA-32e leaf has its protection key.
    pub(crate) const PROTECTION_KEY: u64 = bits_of(IA32E, Features::empty(), Role::ProtectionKey, 1, true);

    /// The protection key of an IA-32e leaf.
    #[inline]
    pub(crate) const fn protection_key(leaf: u64) -> u64 {
        (leaf & Self::PROTECTION_KEY) >> Self::PROTECTION_KEY.trailing_zeros()
    }

    /// G of a leaf outside EPT.
    #[inline]
    pub(crate) const fn is_global(&self, leaf: u64) -> bool {
        const GLOBAL: u64 = bits_of(IA32E, Features::empty(), Role::Global, 1, true);
        !matches!(self.kind, Kind::Ept) && leaf & GLOBAL != 0
    }

    /// Whether a leaf has D.
    pub(crate) const fn is_dirty(&self, leaf: u64) -> bool {
        leaf & self.dirty != 0
    }

    /// Whether the leaf asks that all guest tables used lie in pages with paging-write (rule X4).
    pub(crate) const fn verifies_guest_paging(&self, leaf: &Leaf) -> bool {
        leaf.entry & self.bits(Role::GuestPagingVerification, 1, true) != 0
    }

    /// Whether the page of a guest table passes that check.
    #[inline]
    pub(crate) const fn grants_paging_write(&self, leaf: &Leaf) -> bool {
        // The bit counts here whether or not "EPT paging-write" gives it its own meaning.
        leaf.entry & bits_of(EPT, Features::all(), Role::PagingWrite, 1, true) != 0
    }

    /// Whether the entry, not present or a leaf, keeps a violation from becoming a #VE (rule V2).
    pub(crate) const fn suppresses_ve(entry: u64) -> bool {
        entry & bits_of(EPT, Features::empty(), Role::SuppressVe, 1, true) != 0
    }
}

impl Offer {
    /// The rights of a walk that withholds so much, and ends at that leaf.
    #[inline]
    pub(crate) const fn rights(self, withheld: u64, leaf: u64) -> Rights {
        const LEAVES: u64 = bits_of(EPT, Features::all(), Role::SupervisorShadowStack, 1, true)
            | bits_of(EPT, Features::all(), Role::PagingWrite, 1, true);
        let rights = match self.is_ept() {
            true => Kind::Ept.rights(!withheld & !LEAVES | leaf & LEAVES),
            // In 32-bit entries, too, nothing withholds EXEC.
            false => Kind::Ia32e.rights(!withheld),
        };
        rights.intersection(Rights::from_bits_truncate(self.0))
    }

    /// Whether they contain USER, which EPT has not.
    #[inline]
    pub(crate) const fn grants_user(self, withheld: u64) -> bool {
        const USER: u64 = bits_of(IA32E, Features::empty(), Role::User, 1, true);
        !self.is_ept() && withheld & USER == 0
    }
}

impl Kind {
    /// The rights that these granting bits stand for.
    #[inline]
    pub(crate) const fn rights(self, granted: u64) -> Rights {
        /// With `grants` a constant this comes to a few shifts.
        #[inline(always)]
        const fn gather(granted: u64, grants: [u64; RIGHTS]) -> Rights {
            let mut rights = 0;
            let mut right = 0;
            while right < RIGHTS {
                rights |= ((granted & grants[right] != 0) as u8) << right;
                right += 1;
            }
            Rights::from_bits_truncate(rights)
        }
        match self {
            Self::Ept => gather(granted, const { Self::Ept.grants() }),
            Self::Legacy32 => gather(granted, const { Self::Legacy32.grants() }),
            Self::Pae => gather(granted, const { Self::Pae.grants() }),
            Self::Ia32e | Self::Npt => gather(granted, const { Self::Ia32e.grants() }),
        }
    }
}
