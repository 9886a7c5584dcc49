//! A memory slot, and the four things that can happen to one.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{
    KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
};
use memory_model::{AddrRange, Gpa, Hva, RamBlock};

use crate::SlotRecord;

/// The number of a slot, unique inside a VM. The kernel takes it in the low 16 bits; the high 16 bits
/// name the address space, which is the executor's (rule R7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SlotId(pub u32);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

bitflags::bitflags! {
    /// The flags of `KVM_SET_USER_MEMORY_REGION2`, with the kernel's values. The first version of the call has
    /// the first two.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
    pub struct SlotFlags: u32 {
        /// The kernel keeps a dirty bitmap. Can be changed during a slot's life.
        const LOG_DIRTY_PAGES = KVM_MEM_LOG_DIRTY_PAGES;
        /// A guest write leaves the guest as an MMIO exit. Stays as it is during a slot's life (rule R6).
        const READONLY = KVM_MEM_READONLY;
        /// The slot has a private half in its block's `guest_memfd`. Excludes both others (rule R6).
        const GUEST_MEMFD = KVM_MEM_GUEST_MEMFD;
    }
}

/// One memory slot: guest addresses backed by memory of this process (QEMU's `KVMSlot`). Plain data.
#[derive(Clone, Debug)]
pub struct Slot {
    /// Its number.
    pub id: SlotId,
    /// Where the guest sees it: whole pages.
    pub gpa: AddrRange<Gpa>,
    /// Where this process sees its first byte.
    pub hva: Hva,
    /// Its flags.
    pub flags: SlotFlags,
    /// The name of the region it comes from, for messages.
    pub name: Arc<str>,
    /// The memory `hva` lies in. Whoever keeps a slot keeps its memory mapped.
    pub block: Arc<RamBlock>,
}

impl SlotRecord for Slot {
    fn id(&self) -> SlotId {
        self.id
    }
    fn gpa(&self) -> AddrRange<Gpa> {
        self.gpa
    }
    fn hva(&self) -> Hva {
        self.hva
    }
}

impl Slot {
    /// How many pages it has.
    pub(crate) fn pages(&self) -> u64 {
        self.gpa.last().page_number() - self.gpa.first().page_number() + 1
    }

    /// Where in its block the guest pages of `part` lie, in bytes; `None` unless all are the slot's.
    pub(crate) fn block_part(&self, part: AddrRange<Gpa>) -> Option<Range<u64>> {
        let first = self.gpa.offset_of(part.first()).filter(|_| self.gpa.covers(part))?;
        let start = self.hva.checked_sub(self.block.hva())?.checked_add(first)?;
        Some(start..start.checked_add(u64::try_from(part.bytes()).ok()?)?)
    }

    /// Where their private half lies; `None` without one. The block's `guest_memfd` is laid out as the block is.
    pub(crate) fn private_part(&self, part: AddrRange<Gpa>) -> Option<PrivatePart<'_>> {
        let Range { start, end } = self.block_part(part)?;
        Some(PrivatePart { fd: self.block.guest_memfd()?, offset: start, bytes: end - start })
    }

    /// Whether the kernel would see no difference, the number aside.
    pub(crate) fn same_mapping(&self, other: &Self) -> bool {
        self.gpa == other.gpa && self.flags == other.flags && self.same_memory(other)
    }

    /// Whether both map the same bytes of the same block, wherever the guest sees them.
    pub(crate) fn same_memory(&self, other: &Self) -> bool {
        self.hva == other.hva
            && self.gpa.bytes() == other.gpa.bytes()
            && Arc::ptr_eq(&self.block, &other.block)
    }
}

/// A part of a block's `guest_memfd`.
pub(crate) struct PrivatePart<'a> {
    pub(crate) fd: BorrowedFd<'a>,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl PartialEq for Slot {
    /// Equal in every field; the block must be the same block.
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.name == other.name && self.same_mapping(other)
    }
}

impl Eq for Slot {}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} at {} -> {}", self.id, self.name, self.gpa, self.hva)?;
        if !self.flags.is_empty() {
            f.write_str(", ")?;
            bitflags::parser::to_writer(&self.flags, &mut *f)?;
        }
        f.write_str(")")
    }
}

/// One call of `KVM_SET_USER_MEMORY_REGION`, as plain data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlotOp {
    /// The slot comes to be.
    Create(Slot),
    /// The slot shows the same memory elsewhere; its dirty bitmap goes with it.
    Move {
        /// The slot as it is before.
        slot: Slot,
        /// Its new place, as long as the old one.
        to: AddrRange<Gpa>,
    },
    /// The slot gets other flags; only [`SlotFlags::LOG_DIRTY_PAGES`] can change.
    SetFlags {
        /// The slot as it is before.
        slot: Slot,
        /// Its new flags.
        flags: SlotFlags,
    },
    /// The slot goes, with the bits of its dirty bitmap that nobody read.
    Delete(Slot),
}

impl SlotOp {
    /// The slot as it is before the call; what it is to be, for [`SlotOp::Create`].
    pub fn slot(&self) -> &Slot {
        match self {
            Self::Create(slot)
            | Self::Move { slot, .. }
            | Self::SetFlags { slot, .. }
            | Self::Delete(slot) => slot,
        }
    }

    /// The slot as it stands after the call; `None` if it is gone.
    pub fn result(&self) -> Option<Slot> {
        match self {
            Self::Create(slot) => Some(slot.clone()),
            Self::Move { slot, to } => Some(Slot { gpa: *to, ..slot.clone() }),
            Self::SetFlags { slot, flags } => Some(Slot { flags: *flags, ..slot.clone() }),
            Self::Delete(_) => None,
        }
    }

    /// The call that takes this one back. Dirty bits that a call dropped do not come back.
    pub fn inverse(&self) -> Self {
        match self {
            Self::Create(slot) => Self::Delete(slot.clone()),
            Self::Move { slot, to } => Self::Move { slot: Slot { gpa: *to, ..slot.clone() }, to: slot.gpa },
            Self::SetFlags { slot, flags } => {
                Self::SetFlags { slot: Slot { flags: *flags, ..slot.clone() }, flags: slot.flags }
            }
            Self::Delete(slot) => Self::Create(slot.clone()),
        }
    }

    /// The argument of `KVM_SET_USER_MEMORY_REGION2`: the same, and the block's private half.
    pub fn to_region2(&self) -> kvm_userspace_memory_region2 {
        let kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr } =
            self.to_region();
        let Slot { block, hva, .. } = self.slot();
        let fd = block.guest_memfd().map_or(-1, |fd| fd.as_raw_fd());
        kvm_userspace_memory_region2 {
            slot,
            flags,
            guest_phys_addr,
            memory_size,
            userspace_addr,
            guest_memfd: fd as u32,
            guest_memfd_offset: block.offset_of(*hva).unwrap_or(0),
            ..Default::default()
        }
    }

    /// The argument of the ioctl: a slot as it is to be, with size 0 to delete it.
    pub fn to_region(&self) -> kvm_userspace_memory_region {
        let (slot, gpa, flags) = match self {
            Self::Create(slot) | Self::Delete(slot) => (slot, slot.gpa, slot.flags),
            Self::Move { slot, to } => (slot, *to, slot.flags),
            Self::SetFlags { slot, flags } => (slot, slot.gpa, *flags),
        };
        let memory_size = match self {
            Self::Delete(_) => 0,
            // 2^64 bytes do not fit the field. The kernel refuses the nearest size that does.
            _ => u64::try_from(gpa.bytes()).unwrap_or(u64::MAX),
        };
        kvm_userspace_memory_region {
            slot: slot.id.0,
            flags: flags.bits(),
            guest_phys_addr: gpa.first().0,
            memory_size,
            userspace_addr: slot.hva.0,
        }
    }
}

impl fmt::Display for SlotOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(slot) => write!(f, "create {slot}"),
            Self::Move { slot, to } => write!(f, "move {slot} to {to}"),
            Self::SetFlags { slot, flags } => {
                write!(f, "set the flags of {slot} to {:#x}", flags.bits())
            }
            Self::Delete(slot) => write!(f, "delete {slot}"),
        }
    }
}
