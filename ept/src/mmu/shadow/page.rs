//! One shadow table, and what is known about it (`kvm_mmu_page`, rule K1).

use alloc::boxed::Box;
use alloc::vec::Vec;

use memory_model::Gpa;

use super::role::PageRole;
use crate::access::Rights;

/// Entries of a shadow table.
pub(super) const ENTRIES: usize = 512;

/// The number of a shadow page in its arena.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct PageId(pub u32);

/// One entry of a shadow table (`sptep`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SpteRef {
    pub page: PageId,
    pub index: u16,
}

/// What an entry holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    Absent,
    /// A page of the guest, and what it grants (`shadowed_translation`, rule K4).
    Leaf {
        gfn: u64,
        access: Rights,
    },
    /// A table below.
    Table(PageId),
}

/// [`Held`] in eight bytes: `gfn or number (63:12) | access (11:4) | table (1) | leaf (0)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Packed(u64);

const LEAF: u64 = 1 << 0;
const TABLE: u64 = 1 << 1;
const ACCESS_SHIFT: u32 = 4;
const NUMBER_SHIFT: u32 = 12;

impl Packed {
    const ABSENT: Self = Self(0);

    #[inline]
    fn pack(held: Held) -> Self {
        Self(match held {
            Held::Absent => 0,
            Held::Leaf { gfn, access } => {
                gfn << NUMBER_SHIFT | u64::from(access.bits()) << ACCESS_SHIFT | LEAF
            }
            Held::Table(PageId(number)) => u64::from(number) << NUMBER_SHIFT | TABLE,
        })
    }

    #[inline]
    fn unpack(self) -> Held {
        let number = self.0 >> NUMBER_SHIFT;
        if self.0 & LEAF != 0 {
            let access = Rights::from_bits_truncate((self.0 >> ACCESS_SHIFT) as u8);
            Held::Leaf { gfn: number, access }
        } else if self.0 & TABLE != 0 {
            Held::Table(PageId(number as u32))
        } else {
            Held::Absent
        }
    }
}

/// One table of the shadow MMU (`kvm_mmu_page`).
#[derive(Debug)]
pub struct ShadowPage {
    /// How it translates.
    pub role: PageRole,
    /// Page number of the guest's table that it shadows; of a direct one, of the first page it translates.
    pub gfn: u64,
    /// Host-physical address of the table itself (`spt`).
    pub table: u64,
    /// The guest may write the table that it shadows, so that it may be older (rule H1).
    pub unsync: bool,
    /// It was zapped while a processor had it for its root.
    pub invalid: bool,
    /// How many contexts have it for their root, or for one of their previous ones.
    pub root_count: u32,
    /// Entries in use.
    pub used: u16,
    /// Writes to the guest's table since the shadow was last used for a fault (rule H2).
    pub(super) write_flooding_count: u8,
    /// The entries that point to it (`parent_ptes`).
    pub(super) parents: Vec<SpteRef>,
    /// By entry: something below it is unsync (`unsync_child_bitmap`). A bit may be set in vain, never clear in vain.
    unsync_children: [u64; ENTRIES / 64],
    /// When it was made.
    pub(super) born: u64,
    held: Box<[Packed; ENTRIES]>,
}

impl ShadowPage {
    pub(super) fn new(role: PageRole, gfn: u64, table: u64, born: u64) -> Self {
        Self {
            role,
            gfn,
            table,
            unsync: false,
            invalid: false,
            root_count: 0,
            used: 0,
            write_flooding_count: 0,
            parents: Vec::new(),
            unsync_children: [0; ENTRIES / 64],
            born,
            held: Box::new([Packed::ABSENT; ENTRIES]),
        }
    }

    /// The guest's table that it shadows; `None` if it shadows none.
    pub fn guest_table(&self) -> Option<Gpa> {
        self.role.shadows_table().then_some(Gpa(self.gfn << NUMBER_SHIFT))
    }

    /// Host-physical address of entry `index`.
    #[inline]
    pub fn entry_address(&self, index: u16) -> u64 {
        self.table + u64::from(index) * 8
    }

    #[inline]
    pub(super) fn held(&self, index: u16) -> Held {
        self.held[usize::from(index)].unpack()
    }

    #[inline]
    pub(super) fn hold(&mut self, index: u16, held: Held) {
        let slot = &mut self.held[usize::from(index)];
        let new = Packed::pack(held);
        self.used = self.used + u16::from(new != Packed::ABSENT) - u16::from(*slot != Packed::ABSENT);
        *slot = new;
    }

    /// The same for an entry that is known to hold nothing.
    #[inline]
    pub(super) fn hold_first(&mut self, index: u16, held: Held) {
        self.used += 1;
        self.held[usize::from(index)] = Packed::pack(held);
    }

    /// The first entry in use, from that one on.
    pub(super) fn next_in_use(&self, from: u16) -> Option<u16> {
        let rest = self.held.get(usize::from(from)..)?;
        rest.iter().position(|&held| held != Packed::ABSENT).map(|skipped| from + skipped as u16)
    }

    pub(super) fn has_unsync_children(&self) -> bool {
        self.unsync_children != [0; ENTRIES / 64]
    }

    /// Marks or clears an entry; whether that changed it.
    pub(super) fn mark_unsync_child(&mut self, index: u16, unsync: bool) -> bool {
        let (word, bit) = (&mut self.unsync_children[usize::from(index) / 64], 1 << (index % 64));
        let changed = (*word & bit != 0) != unsync;
        *word = if unsync { *word | bit } else { *word & !bit };
        changed
    }

    /// Clears the mark of one entry and tells which.
    pub(super) fn take_unsync_child(&mut self) -> Option<u16> {
        let word = self.unsync_children.iter().position(|&word| word != 0)?;
        let bit = self.unsync_children[word].trailing_zeros();
        self.unsync_children[word] &= self.unsync_children[word] - 1;
        Some(word as u16 * 64 + bit as u16)
    }
}
