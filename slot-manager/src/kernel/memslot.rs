//! A slot as the kernel keeps it, and what a call can do to one.

use memory_model::{AddrRange, Gpa, Hva, PageSize};

use crate::{SlotFlags, SlotId, SlotRecord};

/// Slots of one address space (`KVM_CAP_NR_MEMSLOTS` on x86): 2^15 - 1 less the kernel's own three.
pub const USER_MEM_SLOTS: u32 = 32764;
/// Pages in the longest slot.
pub const MAX_PAGES: u64 = (1 << 31) - 1;
/// The last guest page there can be: guest addresses have 52 bits at most.
pub const MAX_GFN: u64 = (1 << 40) - 1;
/// The first address above user space with 4-level paging (`TASK_SIZE_MAX`).
pub const USER_END: Hva = Hva(0x7fff_ffff_f000);

/// A slot as the kernel keeps it (`kvm_memory_slot`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Memslot {
    /// Its number, without the address space.
    pub id: SlotId,
    /// Its address space.
    pub as_id: u32,
    /// Where the guest sees it: whole pages.
    pub gpa: AddrRange<Gpa>,
    /// Where the VMM's process sees its first byte.
    pub userspace_addr: Hva,
    /// Its flags.
    pub flags: SlotFlags,
    /// Where its private memory lies; `None` without one, or once the file was closed.
    pub guest_memfd: Option<MemfdRange>,
    /// `KVM_MEMSLOT_INVALID`: the slot is about to go or to move, and nobody may use it (rule K4).
    pub invalid: bool,
}

/// A part of a guest_memfd.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemfdRange {
    /// The descriptor it was bound by.
    pub fd: u32,
    /// Offset of the slot's first byte in the file.
    pub offset: u64,
}

impl Memslot {
    /// The number of its first guest page.
    pub fn base_gfn(&self) -> u64 {
        self.gpa.first().page_number()
    }

    /// How many pages it has.
    pub fn npages(&self) -> u64 {
        self.gpa.last().page_number() - self.base_gfn() + 1
    }

    pub(super) fn bytes(&self) -> u64 {
        self.npages() << PageSize::Size4K.shift()
    }

    /// Its number as the ioctls take it, with the address space in the high half (rule R7).
    pub fn number(&self) -> u32 {
        self.as_id << 16 | self.id.0
    }

    /// The guest addresses of the pages `first..first + count` of the slot; `None` where it has none of them.
    pub fn pages(&self, first: u64, count: u64) -> Option<AddrRange<Gpa>> {
        guest_pages(self.base_gfn().checked_add(first)?, count)?.intersection(self.gpa)
    }
}

impl SlotRecord for Memslot {
    fn id(&self) -> SlotId {
        self.id
    }
    fn gpa(&self) -> AddrRange<Gpa> {
        self.gpa
    }
    fn hva(&self) -> Hva {
        self.userspace_addr
    }
}

/// `pages` pages from guest page `gfn` on.
pub(super) fn guest_pages(gfn: u64, pages: u64) -> Option<AddrRange<Gpa>> {
    let shift = PageSize::Size4K.shift();
    AddrRange::new(Gpa(gfn.checked_mul(1 << shift)?), u128::from(pages) << shift)
}

/// What a call does (`enum kvm_mr_change`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotChange {
    /// A new slot.
    Created(Memslot),
    /// The slot is gone.
    Deleted(Memslot),
    /// The slot shows the same memory elsewhere; its flags may have changed as well.
    Moved {
        /// Before.
        old: Memslot,
        /// After.
        new: Memslot,
    },
    /// Only the flags changed.
    FlagsChanged {
        /// Before.
        old: Memslot,
        /// After.
        new: Memslot,
    },
    /// The slot was like that already.
    Nothing,
}

impl SlotChange {
    pub(super) fn between(old: Option<Memslot>, new: Option<Memslot>) -> Self {
        match (old, new) {
            (None, None) => Self::Nothing,
            (None, Some(new)) => Self::Created(new),
            (Some(old), None) => Self::Deleted(old),
            (Some(old), Some(new)) if old.gpa != new.gpa => Self::Moved { old, new },
            (Some(old), Some(new)) if old.flags != new.flags => Self::FlagsChanged { old, new },
            (Some(_), Some(_)) => Self::Nothing,
        }
    }

    /// The slot before.
    pub fn before(&self) -> Option<&Memslot> {
        match self {
            Self::Deleted(old) | Self::Moved { old, .. } | Self::FlagsChanged { old, .. } => Some(old),
            Self::Created(_) | Self::Nothing => None,
        }
    }

    /// The slot after.
    pub fn after(&self) -> Option<&Memslot> {
        match self {
            Self::Created(new) | Self::Moved { new, .. } | Self::FlagsChanged { new, .. } => Some(new),
            Self::Deleted(_) | Self::Nothing => None,
        }
    }
}
