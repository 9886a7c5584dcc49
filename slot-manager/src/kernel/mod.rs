//! The kernel's side of memory slots, in this process: `struct kvm` and its `kvm_memslots`.

mod table;

use kvm_bindings::kvm_userspace_memory_region;
use memory_model::{AddrRange, Gpa, Hva, PageSize};

use crate::{
    Errno, SlotError, SlotExecutor, SlotFlags, SlotId, SlotLimits, SlotOp, SlotRecord, SlotRegistry,
};

use table::{Call, Verdict};

/// Slots a VM can have (`KVM_CAP_NR_MEMSLOTS` on x86): 2^15 - 1 less the kernel's own three.
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
    /// Its number.
    pub id: SlotId,
    /// Where the guest sees it: whole pages.
    pub gpa: AddrRange<Gpa>,
    /// Where the VMM's process sees its first byte.
    pub userspace_addr: Hva,
    /// Its flags.
    pub flags: SlotFlags,
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

/// What a call did (`enum kvm_mr_change`): what an MMU has to hear of.
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

/// The memory slots of one VM, address space 0, with the errors of the kernel in the kernel's order.
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
/// ```
#[derive(Clone, Debug, Default)]
pub struct KernelMemslots {
    slots: SlotRegistry<Memslot>,
    generation: u64,
}

impl KernelMemslots {
    /// A VM without memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// `KVM_SET_USER_MEMORY_REGION`. A failed call changes nothing (K5).
    pub fn set_user_memory_region(
        &mut self,
        region: &kvm_userspace_memory_region,
    ) -> Result<SlotChange, Errno> {
        let call = Call::new(region, &self.slots);
        let row = call.decide();
        let old = call.old.copied();
        match (row.map(|row| row.verdict), old) {
            (Some(Verdict::Fail(errno)), _) => return Err(errno),
            (Some(Verdict::Nothing), _) => return Ok(SlotChange::Nothing),
            _ => {}
        }
        let new = call.memslot().filter(|_| row.is_none());
        if let Some(old) = old {
            self.slots.remove(old.id);
        }
        if let Some(new) = new {
            self.slots.insert(new);
        }
        let change = match (old, new) {
            (None, None) => SlotChange::Nothing,
            (None, Some(new)) => SlotChange::Created(new),
            (Some(old), None) => SlotChange::Deleted(old),
            (Some(old), Some(new)) if old.gpa != new.gpa => SlotChange::Moved { old, new },
            (Some(old), Some(new)) => SlotChange::FlagsChanged { old, new },
        };
        // Each swap of the active and the inactive set counts, and what takes pages away from the guest
        // swaps twice (K3, K4).
        self.generation += match change {
            SlotChange::Nothing => 0,
            SlotChange::Created(_) | SlotChange::FlagsChanged { .. } => 1,
            SlotChange::Deleted(_) | SlotChange::Moved { .. } => 2,
        };
        Ok(change)
    }

    /// What decides about a call, in words; `None` if the slot would be created or changed. EINVAL has a dozen
    /// causes, and the kernel does not say which it was.
    pub fn explain(&self, region: &kvm_userspace_memory_region) -> Option<&'static str> {
        Call::new(region, &self.slots).decide().map(|row| row.condition)
    }

    /// The slot that holds `gpa`, which need not be the start of a page.
    pub fn gfn_to_memslot(&self, gpa: Gpa) -> Option<&Memslot> {
        self.slots.by_gpa(gpa)
    }

    /// All slots, by number, guest address and host address.
    pub fn slots(&self) -> &SlotRegistry<Memslot> {
        &self.slots
    }

    /// Grows with each change: whoever cached a look-up compares it (`kvm_memslots::generation`).
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

impl SlotExecutor for KernelMemslots {
    fn limits(&self) -> SlotLimits {
        SlotLimits { count: USER_MEM_SLOTS, max_bytes: SlotLimits::MAX_BYTES, readonly: true }
    }

    fn execute(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        let answer = self.set_user_memory_region(&op.to_region());
        answer.map(drop).map_err(|errno| SlotError::refused(op, errno))
    }
}

/// `pages` pages from guest page `gfn` on.
fn guest_pages(gfn: u64, pages: u64) -> Option<AddrRange<Gpa>> {
    let shift = PageSize::Size4K.shift();
    AddrRange::new(Gpa(gfn << shift), u128::from(pages) << shift)
}
