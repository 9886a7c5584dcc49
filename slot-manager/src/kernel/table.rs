//! What `KVM_SET_USER_MEMORY_REGION` and its second version answer, as the kernel's list of conditions in the
//! kernel's order.

use kvm_bindings::{kvm_userspace_memory_region, kvm_userspace_memory_region2};
use memory_model::{Gpa, Hva, PageSize};

use super::guest_memfd::File;
use super::memslot::guest_pages;
use super::{KernelMemslots, MAX_PAGES, MemfdRange, Memslot, USER_END, USER_MEM_SLOTS};
use crate::{Errno, SlotFlags, SlotId};

/// What a condition decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// The call fails and changes nothing.
    Fail(Errno),
    /// The call deletes the slot.
    Delete,
    /// The call succeeds and changes nothing.
    Nothing,
    /// The call fails when the change is under way: what was shown of it is taken back (rule K4).
    Unprepared(Errno),
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

/// The conditions that a call in this process can meet, as x86 has them.
///
/// Left out: an argument that cannot be read (EFAULT); the sum of all pages wrapping, which 32764 slots of an
/// address space cannot reach; a tagged host address, which x86 takes for one outside user space; a page tracker
/// that forbids moves, which is another driver's. Memory that runs out (ENOMEM) is not a condition of the call: a
/// bitmap's allocation can fail, and [`KvmArch::prepare_memory_region`](super::KvmArch::prepare_memory_region).
#[rustfmt::skip]
static CONDITIONS: [Row; 21] = [
    row("a flag other than LOG_DIRTY_PAGES and READONLY in the first version", INVALID, |call| call.first_version && !(LOG_DIRTY | READONLY).contains(call.flags)),
    row("a slot number the kernel keeps for itself or does not have", INVALID, |call| call.id.0 >= USER_MEM_SLOTS),
    row("a flag this kernel does not have, or GUEST_MEMFD with another", INVALID, |call| !call.known_flags().contains(call.flags)),
    row("the size is not whole pages", INVALID, |call| !whole_pages(call.size)),
    row("the guest address does not start a page, even for size 0", INVALID, |call| !whole_pages(call.gpa)),
    row("the host address does not start a page, even for size 0", INVALID, |call| !whole_pages(call.hva)),
    row("host addresses outside user space", INVALID, |call| !in_user_space(call.hva, call.size)),
    row("the guest_memfd offset does not start a page, or wraps", INVALID, |call| call.private() && (!whole_pages(call.memfd.offset) || call.memfd.offset.checked_add(call.size).is_none())),
    row("an address space the VM does not have", INVALID, |call| call.as_id >= call.kernel.caps.address_spaces),
    row("guest addresses that wrap; an end of exactly 2^64 counts", INVALID, |call| call.gpa.checked_add(call.size).is_none()),
    row("more than 2^31 - 1 pages", INVALID, |call| call.pages() > MAX_PAGES),
    row("nothing to delete", INVALID, |call| call.size == 0 && call.old.is_none()),
    row("size 0 deletes", Verdict::Delete, |call| call.size == 0),
    row("GUEST_MEMFD for a slot that exists, which can only be deleted", INVALID, |call| call.old.is_some() && call.private()),
    row("another size, host address, READONLY or GUEST_MEMFD than the slot has", INVALID, |call| call.old.is_some_and(|old| call.reshapes(&old))),
    row("the slot is like that already", Verdict::Nothing, |call| call.old.is_some_and(|old| old.gpa.first().0 == call.gpa && old.flags == call.flags)),
    row("created on, or moved to, another slot's pages", Verdict::Fail(Errno::EEXIST), |call| call.overlaps_others()),
    row("the guest_memfd is not an open file", Verdict::Fail(Errno::EBADF), |call| call.private() && call.file().is_none()),
    row("the file is no guest_memfd of this VM, or ends before the slot", INVALID, |call| call.file().is_some_and(|file| !file.has(call.memfd.offset, call.size))),
    row("that part of the guest_memfd has a slot already", INVALID, |call| call.file().is_some_and(|file| file.is_bound(call.memfd.offset, call.size))),
    row("created at, or moved to, pages past the last guest page", Verdict::Unprepared(Errno::EINVAL), |call| call.last_gfn() > call.kernel.caps.max_gfn),
];

const LOG_DIRTY: SlotFlags = SlotFlags::LOG_DIRTY_PAGES;
const READONLY: SlotFlags = SlotFlags::READONLY;
const GUEST_MEMFD: SlotFlags = SlotFlags::GUEST_MEMFD;

/// One call: its argument, and the kernel it meets.
pub(super) struct Call<'a> {
    kernel: &'a KernelMemslots,
    first_version: bool,
    id: SlotId,
    pub(super) as_id: u32,
    /// As given: unknown flags are kept.
    flags: SlotFlags,
    gpa: u64,
    size: u64,
    hva: u64,
    memfd: MemfdRange,
    /// The slot that has the number already.
    pub(super) old: Option<Memslot>,
}

impl<'a> Call<'a> {
    pub(super) fn first(region: &kvm_userspace_memory_region, kernel: &'a KernelMemslots) -> Self {
        let region = kvm_userspace_memory_region2 {
            slot: region.slot,
            flags: region.flags,
            guest_phys_addr: region.guest_phys_addr,
            memory_size: region.memory_size,
            userspace_addr: region.userspace_addr,
            ..Default::default()
        };
        Self { first_version: true, ..Self::second(&region, kernel) }
    }

    pub(super) fn second(region: &kvm_userspace_memory_region2, kernel: &'a KernelMemslots) -> Self {
        let (as_id, id) = split_number(region.slot);
        Self {
            kernel,
            first_version: false,
            id,
            as_id,
            flags: SlotFlags::from_bits_retain(region.flags),
            gpa: region.guest_phys_addr,
            size: region.memory_size,
            hva: region.userspace_addr,
            memfd: MemfdRange { fd: region.guest_memfd, offset: region.guest_memfd_offset },
            old: kernel.address_space(as_id).and_then(|set| set.slots().by_id(id)).copied(),
        }
    }

    /// The first condition that applies.
    pub(super) fn decide(&self) -> Option<&'static Row> {
        CONDITIONS.iter().find(|row| (row.applies)(self))
    }

    /// The slot as it is to be; none for size 0.
    pub(super) fn memslot(&self) -> Option<Memslot> {
        Some(Memslot {
            id: self.id,
            as_id: self.as_id,
            gpa: guest_pages(Gpa(self.gpa).page_number(), self.pages())?,
            userspace_addr: Hva(self.hva),
            flags: self.flags,
            guest_memfd: self.private().then_some(self.memfd),
            invalid: false,
        })
    }

    fn pages(&self) -> u64 {
        self.size >> PageSize::Size4K.shift()
    }

    fn private(&self) -> bool {
        self.flags.contains(GUEST_MEMFD)
    }

    /// Private memory is neither logged nor read-only.
    fn known_flags(&self) -> SlotFlags {
        if self.private() && self.kernel.caps.guest_memfd.is_some() {
            GUEST_MEMFD
        } else if self.kernel.caps.readonly {
            LOG_DIRTY | READONLY
        } else {
            LOG_DIRTY
        }
    }

    fn file(&self) -> Option<&File> {
        self.kernel.files.get(self.memfd.fd).filter(|_| self.private())
    }

    /// Whether the call changes what a slot keeps all its life (rules K1, R6).
    fn reshapes(&self, old: &Memslot) -> bool {
        old.npages() != self.pages()
            || old.userspace_addr.0 != self.hva
            || (old.flags ^ self.flags).intersects(READONLY | GUEST_MEMFD)
    }

    /// Asked of creations and moves alone. A slot whose place stays has no other's pages, so it needs no
    /// case of its own.
    fn overlaps_others(&self) -> bool {
        let (Some(new), Some(set)) = (self.memslot(), self.kernel.address_space(self.as_id)) else {
            return false;
        };
        set.slots().overlapping(new.gpa).any(|other| other.id != self.id)
    }

    fn last_gfn(&self) -> u64 {
        self.memslot().map_or(0, |new| new.gpa.last().page_number())
    }
}

/// Address space and id, as the ioctls take them in one number (rule R7).
pub(super) fn split_number(slot: u32) -> (u32, SlotId) {
    (slot >> 16, SlotId(slot & 0xffff))
}

fn whole_pages(bytes: u64) -> bool {
    bytes.is_multiple_of(PageSize::Size4K.bytes())
}

/// The kernel's `access_ok`.
fn in_user_space(hva: u64, size: u64) -> bool {
    hva.checked_add(size).is_some_and(|end| end <= USER_END.0)
}
