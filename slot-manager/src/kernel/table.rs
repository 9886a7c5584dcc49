//! What `KVM_SET_USER_MEMORY_REGION` answers, as the kernel's list of conditions in the kernel's order.

use kvm_bindings::kvm_userspace_memory_region;
use memory_model::{Gpa, Hva, PageSize};

use super::{MAX_GFN, MAX_PAGES, Memslot, USER_END, USER_MEM_SLOTS, guest_pages};
use crate::{Errno, SlotFlags, SlotId, SlotRegistry};

/// What a condition decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The call fails and changes nothing.
    Fail(Errno),
    /// The call deletes the slot.
    Delete,
    /// The call succeeds and changes nothing.
    Nothing,
}

/// One condition. The first that applies decides the call; if none does, the slot is created or changed.
pub(super) struct Row {
    /// What holds if it applies.
    pub(super) condition: &'static str,
    /// What it decides.
    pub(super) verdict: Verdict,
    applies: fn(&Call) -> bool,
}

const fn row(condition: &'static str, verdict: Verdict, applies: fn(&Call) -> bool) -> Row {
    Row { condition, verdict, applies }
}

const INVALID: Verdict = Verdict::Fail(Errno::EINVAL);
const EXISTS: Verdict = Verdict::Fail(Errno::EEXIST);

/// The conditions that the first version of the ioctl can meet on x86 with one address space.
///
/// Left out: an argument that cannot be read (EFAULT), memory that runs out (ENOMEM), and the sum of all
/// pages wrapping, which 32764 slots cannot reach.
#[rustfmt::skip]
static CONDITIONS: [Row; 15] = [
    row("a flag other than LOG_DIRTY_PAGES and READONLY", INVALID, |call| SlotFlags::from_bits(call.flags).is_none()),
    row("a slot number the kernel keeps for itself or does not have", INVALID, |call| call.id.0 >= USER_MEM_SLOTS),
    row("the size is not whole pages", INVALID, |call| !whole_pages(call.size)),
    row("the guest address does not start a page, even for size 0", INVALID, |call| !whole_pages(call.gpa)),
    row("the host address does not start a page, even for size 0", INVALID, |call| !whole_pages(call.hva)),
    row("host addresses outside user space", INVALID, |call| !in_user_space(call.hva, call.size)),
    row("an address space other than 0", INVALID, |call| call.address_space != 0),
    row("guest addresses that wrap; an end of exactly 2^64 counts", INVALID, |call| call.gpa.checked_add(call.size).is_none()),
    row("more than 2^31 - 1 pages", INVALID, |call| call.pages() > MAX_PAGES),
    row("nothing to delete", INVALID, |call| call.size == 0 && call.old.is_none()),
    row("size 0 deletes", Verdict::Delete, |call| call.size == 0),
    row("another size, host address or READONLY than the slot has", INVALID, |call| call.old.is_some_and(|old| call.reshapes(old))),
    row("the slot is like that already", Verdict::Nothing, |call| call.old.copied() == call.memslot()),
    row("created on, or moved to, another slot's pages", EXISTS, |call| call.overlaps_others()),
    row("created at, or moved to, pages past the last guest page", INVALID, |call| call.last_gfn() > MAX_GFN),
];

/// One call: its argument, and the slots it meets.
pub(super) struct Call<'a> {
    id: SlotId,
    address_space: u32,
    flags: u32,
    gpa: u64,
    size: u64,
    hva: u64,
    /// The slot that has the number already.
    pub(super) old: Option<&'a Memslot>,
    slots: &'a SlotRegistry<Memslot>,
}

impl<'a> Call<'a> {
    pub(super) fn new(region: &kvm_userspace_memory_region, slots: &'a SlotRegistry<Memslot>) -> Self {
        let id = SlotId(region.slot & 0xffff);
        Self {
            id,
            address_space: region.slot >> 16,
            flags: region.flags,
            gpa: region.guest_phys_addr,
            size: region.memory_size,
            hva: region.userspace_addr,
            old: slots.by_id(id),
            slots,
        }
    }

    /// The first condition that applies.
    pub(super) fn decide(&self) -> Option<&'static Row> {
        CONDITIONS.iter().find(|row| (row.applies)(self))
    }

    fn pages(&self) -> u64 {
        self.size >> PageSize::Size4K.shift()
    }

    /// The slot as it is to be; none for size 0.
    pub(super) fn memslot(&self) -> Option<Memslot> {
        Some(Memslot {
            id: self.id,
            gpa: guest_pages(Gpa(self.gpa).page_number(), self.pages())?,
            userspace_addr: Hva(self.hva),
            flags: SlotFlags::from_bits_truncate(self.flags),
        })
    }

    /// Whether the call changes what a slot keeps all its life (K1, R6).
    fn reshapes(&self, old: &Memslot) -> bool {
        let changed = SlotFlags::from_bits_truncate(self.flags) ^ old.flags;
        old.npages() != self.pages()
            || old.userspace_addr.0 != self.hva
            || changed.contains(SlotFlags::READONLY)
    }

    /// Asked of creations and moves alone. A slot whose place stays has no other's pages, so it needs no
    /// case of its own.
    fn overlaps_others(&self) -> bool {
        let Some(new) = self.memslot() else { return false };
        self.slots.overlapping(new.gpa).any(|other| other.id != self.id)
    }

    fn last_gfn(&self) -> u64 {
        self.memslot().map_or(0, |new| new.gpa.last().page_number())
    }
}

fn whole_pages(bytes: u64) -> bool {
    bytes.is_multiple_of(PageSize::Size4K.bytes())
}

/// The kernel's `access_ok`.
fn in_user_space(hva: u64, size: u64) -> bool {
    hva.checked_add(size).is_some_and(|end| end <= USER_END.0)
}
