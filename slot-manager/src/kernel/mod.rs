//! The kernel's side of memory slots, in this process: `struct kvm` and its `kvm_memslots`.

mod arch;
mod attributes;
mod dirty_bitmap;
mod dirty_ring;
mod guest_memfd;
mod log;
mod memslot;
mod runs;
mod sets;
mod table;
mod update;

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_memory_attributes, kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
};
use memory_model::{AddrRange, Gpa};

use crate::{
    DirtyLog, DirtyMethod, Errno, Side, Slot, SlotError, SlotExecutor, SlotFlags, SlotLimits, SlotOp,
    SlotRegistry,
};

pub use arch::KvmArch;
pub(crate) use attributes::side_call;
pub use dirty_ring::{DirtyGfn, DirtyRing, RESERVED_ENTRIES};
pub use memslot::{MAX_GFN, MAX_PAGES, MemfdRange, Memslot, SlotChange, USER_END, USER_MEM_SLOTS};
pub use sets::{GENERATION_UPDATE, MemslotSet};

use attributes::Attributes;
use dirty_bitmap::ManualProtect;
use dirty_ring::Rings;
use guest_memfd::Files;
use runs::Runs;
use sets::AddressSpace;
use table::{Call, split_number};

/// What the kernel and its processor have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KernelCaps {
    /// Address spaces of a VM (`KVM_CAP_MULTI_ADDRESS_SPACE`): 2 on x86 with SMM, for what SMM sees; else 1.
    pub address_spaces: u32,
    /// `KVM_CAP_READONLY_MEM`.
    pub readonly: bool,
    /// `KVM_CAP_GUEST_MEMFD`: the flags that a guest_memfd can be made with, if there are any.
    pub guest_memfd: Option<u64>,
    /// `KVM_CAP_MEMORY_ATTRIBUTES`: the attributes that guest pages can have, which are none in a VM of a type without
    /// private memory; `None` if the kernel lacks the call.
    pub memory_attributes: Option<u64>,
    /// The last guest page: the processor's last, or [`MAX_GFN`] without hardware paging.
    pub max_gfn: u64,
    /// `KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP`: not on x86.
    pub ring_with_bitmap: bool,
}

impl Default for KernelCaps {
    /// Linux on x86 without SMM, and a VM of a type with private memory.
    fn default() -> Self {
        Self {
            address_spaces: 1,
            readonly: true,
            guest_memfd: Some(0),
            memory_attributes: Some(KVM_MEMORY_ATTRIBUTE_PRIVATE.into()),
            max_gfn: MAX_GFN,
            ring_with_bitmap: false,
        }
    }
}

/// The memory slots of one VM, with the errors of the kernel in the kernel's order.
///
/// ```
/// use kvm_bindings::kvm_userspace_memory_region;
/// use memory_model::{Gpa, Hva};
/// use slot_manager::{Errno, KernelMemslots, SlotChange, SlotRecord};
///
/// let mut kernel = KernelMemslots::new();
/// let region = kvm_userspace_memory_region {
///     guest_phys_addr: 0x10_0000,
///     memory_size: 0x4000,
///     userspace_addr: 0x7f00_0000_0000,
///     ..Default::default()
/// };
/// assert!(matches!(kernel.set_user_memory_region(&region), Ok(SlotChange::Created(_))));
///
/// let slot = kernel.gfn_to_memslot(Gpa(0x10_2008)).unwrap();
/// assert_eq!(slot.hva_of(Gpa(0x10_2008)), Some(Hva(0x7f00_0000_2008)));
///
/// let onto_it = kvm_userspace_memory_region { slot: 1, ..region };
/// assert_eq!(kernel.set_user_memory_region(&onto_it), Err(Errno::EEXIST));
///
/// // The log of a slot's writes is a bitmap.
/// let logged = kvm_userspace_memory_region { flags: 1, ..region };
/// kernel.set_user_memory_region(&logged)?;
/// assert!(kernel.mark_page_dirty(None, 0, Gpa(0x10_2008)));
/// let mut bitmap = [0];
/// kernel.get_dirty_log(0, &mut bitmap)?;
/// assert_eq!(bitmap, [1 << 2]);
/// # Ok::<(), Errno>(())
/// ```
#[derive(Debug)]
pub struct KernelMemslots {
    caps: KernelCaps,
    spaces: Vec<AddressSpace>,
    manual_protect: ManualProtect,
    rings: Rings,
    files: Files,
    attributes: Runs<Attributes>,
}

impl Default for KernelMemslots {
    fn default() -> Self {
        Self::with_caps(KernelCaps::default())
    }
}

/// What a fault on a guest page comes to, as far as slots decide (`kvm_faultin_pfn`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotFault<'a> {
    /// The page of this slot is to be mapped.
    Memory(&'a Memslot),
    /// The slot is about to go or to move: the access is to be made again when it has (rule K4).
    Retry,
    /// No slot, or a write into a read-only one: the VMM emulates the access.
    Mmio,
    /// The page is on the other side, or is to be private in a slot without private memory: the VMM is asked to
    /// convert it (`KVM_EXIT_MEMORY_FAULT`).
    MemoryFault,
}

impl KernelMemslots {
    /// A VM without memory, on a kernel like the one of [`KernelCaps::default`].
    pub fn new() -> Self {
        Self::default()
    }

    /// A VM without memory. It has one address space at least.
    pub fn with_caps(caps: KernelCaps) -> Self {
        let caps = KernelCaps { address_spaces: caps.address_spaces.max(1), ..caps };
        Self {
            caps,
            spaces: (0..caps.address_spaces).map(AddressSpace::new).collect(),
            manual_protect: ManualProtect::default(),
            rings: Rings::default(),
            files: Files::default(),
            attributes: Runs::default(),
        }
    }

    /// The ioctls, with an MMU that hears of what they do.
    pub fn on<'a, A: KvmArch>(&'a mut self, arch: &'a mut A) -> Ioctls<'a, A> {
        Ioctls { kernel: self, arch }
    }

    /// What decides about a call, in words; `None` if the slot would be created or changed. EINVAL has a dozen
    /// causes, and the kernel does not say which it was.
    pub fn explain(&self, region: &kvm_userspace_memory_region) -> Option<&'static str> {
        Call::first(region, self).decide().map(|row| row.condition)
    }

    /// The same for the second version of the call.
    pub fn explain2(&self, region: &kvm_userspace_memory_region2) -> Option<&'static str> {
        Call::second(region, self).decide().map(|row| row.condition)
    }

    /// The set of slots that is in force in an address space.
    pub fn address_space(&self, as_id: u32) -> Option<&MemslotSet> {
        self.spaces.get(as_id as usize).map(AddressSpace::active)
    }

    /// The slot of address space 0 that holds `gpa`, which need not be the start of a page.
    pub fn gfn_to_memslot(&self, gpa: Gpa) -> Option<&Memslot> {
        self.slots().by_gpa(gpa)
    }

    /// What a fault on `gpa` comes to, for an access that takes the page to be on `side`. An address without a slot
    /// is MMIO, but one whose slot is INVALID is not.
    pub fn fault(&self, as_id: u32, gpa: Gpa, side: Side, write: bool) -> SlotFault<'_> {
        if side != self.side(gpa) {
            return SlotFault::MemoryFault;
        }
        match self.address_space(as_id).and_then(|set| set.gfn_to_memslot(gpa)) {
            Some(slot) if slot.invalid => SlotFault::Retry,
            Some(slot) if side == Side::Private && slot.guest_memfd.is_none() => SlotFault::MemoryFault,
            Some(slot) if !(write && slot.flags.contains(SlotFlags::READONLY)) => SlotFault::Memory(slot),
            Some(_) | None => SlotFault::Mmio,
        }
    }

    /// All slots of address space 0, by number, guest address and host address.
    pub fn slots(&self) -> &SlotRegistry<Memslot> {
        self.space(0).active().slots()
    }

    /// The generation of address space 0 (`kvm_memslots::generation`).
    pub fn generation(&self) -> u64 {
        self.space(0).active().generation()
    }

    /// One that is there: `as_id` was checked.
    fn space(&self, as_id: u32) -> &AddressSpace {
        &self.spaces[as_id as usize]
    }

    fn space_mut(&mut self, as_id: u32) -> &mut AddressSpace {
        &mut self.spaces[as_id as usize]
    }
}

/// The ioctls of a VM with its MMU: see [`KernelMemslots::on`].
pub struct Ioctls<'a, A> {
    kernel: &'a mut KernelMemslots,
    arch: &'a mut A,
}

/// The ioctls of a VM without an MMU.
impl KernelMemslots {
    /// [`Ioctls::set_user_memory_region`]
    pub fn set_user_memory_region(
        &mut self,
        region: &kvm_userspace_memory_region,
    ) -> Result<SlotChange, Errno> {
        self.on(&mut ()).set_user_memory_region(region)
    }

    /// [`Ioctls::set_user_memory_region2`]
    pub fn set_user_memory_region2(
        &mut self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<SlotChange, Errno> {
        self.on(&mut ()).set_user_memory_region2(region)
    }

    /// [`Ioctls::get_dirty_log`]
    pub fn get_dirty_log(&mut self, slot: u32, bitmap: &mut [u64]) -> Result<(), Errno> {
        self.on(&mut ()).get_dirty_log(slot, bitmap)
    }

    /// [`Ioctls::clear_dirty_log`]
    pub fn clear_dirty_log(
        &mut self,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        self.on(&mut ()).clear_dirty_log(slot, first_page, num_pages, bitmap)
    }

    /// [`Ioctls::set_memory_attributes`]
    pub fn set_memory_attributes(&mut self, call: &kvm_memory_attributes) -> Result<(), Errno> {
        self.on(&mut ()).set_memory_attributes(call)
    }

    /// [`Ioctls::reset_dirty_rings`]
    pub fn reset_dirty_rings(&mut self) -> Result<u32, Errno> {
        self.on(&mut ()).reset_dirty_rings()
    }
}

impl SlotExecutor for KernelMemslots {
    fn limits(&self) -> SlotLimits {
        SlotLimits { count: USER_MEM_SLOTS, max_bytes: SlotLimits::MAX_BYTES, readonly: self.caps.readonly }
    }

    fn execute(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        self.on(&mut ()).execute(op).map(drop)
    }

    fn dirty_method(&self) -> DirtyMethod {
        self.method()
    }

    fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog)) {
        act(&mut self.on(&mut ()));
    }

    fn set_side(&mut self, range: AddrRange<Gpa>, side: Side) -> Result<(), SlotError> {
        self.on(&mut ()).set_side(range, side)
    }

    fn punch_hole(&mut self, slot: &Slot, part: AddrRange<Gpa>) -> Result<(), Errno> {
        let hole = slot.private_part(part).ok_or(Errno::EBADF)?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        self.fallocate(hole.fd.as_raw_fd() as u32, mode, hole.offset, hole.bytes)
    }
}
