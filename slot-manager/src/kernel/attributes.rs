//! What a guest page is besides its slot: `KVM_SET_MEMORY_ATTRIBUTES`.
//!
//! Attributes belong to guest pages, not to slots: they stay when a slot goes, and pages without a slot have them too.

use std::num::NonZeroU64;
use std::ops::Range;

use kvm_bindings::{KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes};
use memory_model::{AddrRange, Gpa, PageSize};

use super::memslot::guest_pages;
use super::{Ioctls, KernelMemslots, KvmArch, Memslot};
use crate::{Errno, Side, SlotError};

/// `KVM_MEMORY_ATTRIBUTE_PRIVATE`: the page lies in its slot's guest_memfd.
const PRIVATE: u64 = KVM_MEMORY_ATTRIBUTE_PRIVATE as u64;

/// The attributes of a page that has some.
pub(super) type Attributes = NonZeroU64;

/// One condition. The first that applies fails the call, which changes nothing then.
struct Row {
    condition: &'static str,
    errno: Errno,
    applies: fn(&KernelMemslots, &kvm_memory_attributes) -> bool,
}

const fn row(
    condition: &'static str,
    errno: Errno,
    applies: fn(&KernelMemslots, &kvm_memory_attributes) -> bool,
) -> Row {
    Row { condition, errno, applies }
}

const INVALID: Errno = Errno::EINVAL;

/// The conditions in the kernel's order. Left out: an argument that cannot be read (EFAULT), and memory that runs out
/// (ENOMEM).
#[rustfmt::skip]
static CONDITIONS: [Row; 6] = [
    row("a kernel without memory attributes", Errno::ENOTTY, |kernel, _| kernel.caps.memory_attributes.is_none()),
    row("flags, of which there are none", INVALID, |_, call| call.flags != 0),
    row("an attribute this VM does not have", INVALID, |kernel, call| call.attributes & !kernel.supported() != 0),
    row("size 0", INVALID, |_, call| call.size == 0),
    row("guest addresses that wrap; an end of exactly 2^64 counts", INVALID, |_, call| call.address.checked_add(call.size).is_none()),
    row("an address or a size that is not whole pages", INVALID, |_, call| (call.address | call.size) % PageSize::Size4K.bytes() != 0),
];

impl KernelMemslots {
    /// What fails a call, in words; `None` if it succeeds. All but one of the causes are EINVAL.
    pub fn explain_memory_attributes(&self, call: &kvm_memory_attributes) -> Option<&'static str> {
        self.refuses(call).map(|row| row.condition)
    }

    /// The attributes of the page that `gpa` lies in (`kvm_get_memory_attributes`).
    pub fn memory_attributes(&self, gpa: Gpa) -> u64 {
        self.attributes.get(gpa.page_number()).map_or(0, Attributes::get)
    }

    /// Which side of its memory the page shows to the guest (`kvm_mem_is_private`).
    pub fn side(&self, gpa: Gpa) -> Side {
        if self.memory_attributes(gpa) & PRIVATE != 0 { Side::Private } else { Side::Shared }
    }

    fn refuses(&self, call: &kvm_memory_attributes) -> Option<&'static Row> {
        CONDITIONS.iter().find(|row| (row.applies)(self, call))
    }

    /// What `KVM_CAP_MEMORY_ATTRIBUTES` answers.
    fn supported(&self) -> u64 {
        self.caps.memory_attributes.unwrap_or(0)
    }
}

impl<A: KvmArch> Ioctls<'_, A> {
    /// `KVM_SET_MEMORY_ATTRIBUTES`: the pages have these attributes from now on and no others. Before that, the MMU
    /// hears of each slot that has some of them, unless nothing changes.
    pub fn set_memory_attributes(&mut self, call: &kvm_memory_attributes) -> Result<(), Errno> {
        if let Some(row) = self.kernel.refuses(call) {
            return Err(row.errno);
        }
        let attributes = Attributes::new(call.attributes);
        let pages = pages_of(call);
        if self.kernel.attributes.all(pages.clone(), attributes) {
            return Ok(());
        }
        for (slot, part) in self.slots_within(&pages) {
            self.arch.pre_set_memory_attributes(self.kernel, &slot, part);
        }
        self.kernel.attributes.set(pages, attributes);
        Ok(())
    }

    /// The same for one attribute, which is all there is.
    pub fn set_side(&mut self, range: AddrRange<Gpa>, side: Side) -> Result<(), SlotError> {
        self.set_memory_attributes(&side_call(range, side)).map_err(|errno| SlotError::Attributes {
            range,
            side,
            errno,
        })
    }

    /// The slots of all address spaces that have some of `pages`, and which.
    fn slots_within(&self, pages: &Range<u64>) -> Vec<(Memslot, AddrRange<Gpa>)> {
        let Some(range) = guest_pages(pages.start, pages.end - pages.start) else { return Vec::new() };
        let spaces = self.kernel.spaces.iter();
        spaces
            .flat_map(|space| space.active().slots().overlapping(range))
            .filter_map(|slot| Some((*slot, slot.gpa.intersection(range)?)))
            .collect()
    }
}

/// The call that puts `range` on one side. A range that is no argument of the call comes out as one that is refused.
pub(crate) fn side_call(range: AddrRange<Gpa>, side: Side) -> kvm_memory_attributes {
    kvm_memory_attributes {
        address: range.first().0,
        // 2^64 bytes do not fit the field.
        size: u64::try_from(range.bytes()).unwrap_or(u64::MAX),
        attributes: if side == Side::Private { PRIVATE } else { 0 },
        flags: 0,
    }
}

fn pages_of(call: &kvm_memory_attributes) -> Range<u64> {
    let shift = PageSize::Size4K.shift();
    call.address >> shift..(call.address + call.size) >> shift
}
