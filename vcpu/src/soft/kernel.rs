//! The kernel side of the software machine: slots, host frames and the second-level MMU, tied together as
//! `struct kvm` ties them.

use ept::mmu::{Memslots, SlotLookup};
use memory_model::{AddrRange, Gpa, Gva, PageSize};
use slot_manager::{
    DirtyLog, Errno, KernelCaps, KernelMemslots, KvmArch, Memslot, Side, SlotChange, SlotError, SlotFault,
    SlotFlags, SlotOp, SlotRecord,
};

use super::frames::FrameTable;
use super::options::{MAX_PHY_ADDR, SoftOptions};
use super::second_level::SoftMmu;
use super::tlb::Tlb;
use crate::{SecondLevelLeaf, VcpuError};

/// Slots, frames and second-level tables of one VM. Its fields are open, so that a test can look at them, or
/// break one and see who notices.
pub struct SoftKernel {
    /// The memory slots.
    pub memslots: KernelMemslots,
    /// The host's frames.
    pub frames: FrameTable,
    /// The second-level MMU.
    pub mmu: SoftMmu,
    vcpus: Vec<VcpuArch>,
    /// How often the MMU has asked the processors to flush.
    tlb_flushes: u64,
}

/// What the kernel keeps of a vCPU (`kvm_vcpu_arch`).
#[derive(Default)]
pub(super) struct VcpuArch {
    /// Its processor's translation cache.
    pub(super) tlb: Tlb,
}

impl SoftKernel {
    /// A VM without slots, with an empty second level.
    pub(super) fn new(options: &SoftOptions) -> Result<Self, VcpuError> {
        let frames = FrameTable::default();
        let mmu = SoftMmu::new(options, &frames)?;
        let caps = KernelCaps {
            max_gfn: Gpa(MAX_PHY_ADDR.last()).page_number(),
            // No access of its guests is private, and none leaves as a memory fault.
            memory_attributes: None,
            ..KernelCaps::default()
        };
        let memslots = KernelMemslots::with_caps(caps);
        Ok(Self { memslots, frames, mmu, vcpus: Vec::new(), tlb_flushes: 0 })
    }

    /// `KVM_CREATE_VCPU`; returns its index.
    pub(super) fn create_vcpu(&mut self) -> u32 {
        self.vcpus.push(VcpuArch::default());
        self.memslots.create_vcpu()
    }

    pub(super) fn vcpu(&mut self, index: u32) -> &mut VcpuArch {
        &mut self.vcpus[index as usize]
    }

    /// How often the MMU has asked the processors to flush (`remote_tlb_flush`).
    pub(super) fn tlb_flushes(&self) -> u64 {
        self.tlb_flushes
    }

    /// The slots, and the MMU that hears of what happens to them.
    fn parts(&mut self) -> (&mut KernelMemslots, SlotMmu<'_>) {
        let Self { memslots, frames, mmu, tlb_flushes, .. } = self;
        (memslots, SlotMmu { frames, mmu, tlb_flushes })
    }

    /// `KVM_SET_USER_MEMORY_REGION`.
    pub(super) fn set_slot(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        let (memslots, mut mmu) = self.parts();
        if let SlotChange::Created(_) = memslots.on(&mut mmu).execute(op)? {
            self.frames.map(&op.slot().block);
        }
        Ok(())
    }

    /// Lets `act` do something with the dirty logs.
    pub(super) fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog)) {
        let (memslots, mut mmu) = self.parts();
        act(&mut memslots.on(&mut mmu));
    }

    /// `KVM_GET_DIRTY_LOG`: one bit a page. Without manual protect it starts the log anew.
    pub fn get_dirty_log(&mut self, slot: u32, bitmap: &mut [u64]) -> Result<(), Errno> {
        let (memslots, mut mmu) = self.parts();
        memslots.on(&mut mmu).get_dirty_log(slot, bitmap)
    }

    /// `KVM_CLEAR_DIRTY_LOG`.
    pub fn clear_dirty_log(
        &mut self,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        let (memslots, mut mmu) = self.parts();
        memslots.on(&mut mmu).clear_dirty_log(slot, first_page, num_pages, bitmap)
    }

    /// What the second level says of the guest's page at `gpa`.
    pub fn leaf(&self, _gva: Gva, gpa: Gpa) -> Option<SecondLevelLeaf> {
        self.mmu.leaf(gpa, &self.frames)
    }
}

/// The second level, as it hears of slots.
struct SlotMmu<'a> {
    frames: &'a FrameTable,
    mmu: &'a mut SoftMmu,
    tlb_flushes: &'a mut u64,
}

impl SlotMmu<'_> {
    fn write_protect(&mut self, range: AddrRange<Gpa>) {
        *self.tlb_flushes += u64::from(self.mmu.write_protect(range, self.frames));
    }
}

impl KvmArch for SlotMmu<'_> {
    /// What goes or moves leaves the second level at once (rule Z3).
    fn flush_shadow_memslot(&mut self, _kernel: &KernelMemslots, slot: &Memslot) {
        *self.tlb_flushes += u64::from(self.mmu.zap(slot.gpa(), self.frames));
    }

    /// A log that starts makes its pages fault on their next write, unless it starts with all of them dirty
    /// (rule D1).
    fn commit_memory_region(&mut self, kernel: &KernelMemslots, change: &SlotChange) {
        if let SlotChange::FlagsChanged { old, new } = change
            && (new.flags - old.flags).contains(SlotFlags::LOG_DIRTY_PAGES)
            && !kernel.logs_start_dirty()
        {
            self.write_protect(new.gpa());
        }
    }

    fn enable_log_dirty(&mut self, slot: &Memslot, first_page: u64, mask: u64) {
        let mut left = mask;
        while left != 0 {
            // Runs of pages, for a log is often dense.
            let start = left.trailing_zeros();
            let count = (left >> start).trailing_ones();
            if let Some(pages) = slot.pages(first_page + u64::from(start), count.into()) {
                self.write_protect(pages);
            }
            left &= u64::MAX.checked_shl(start + count).unwrap_or(0);
        }
    }
}

/// The slots as the MMU asks for them. One that is INVALID for a moment (rule K4) is seen by those who are told of
/// the change alone: who makes it holds the VM.
pub(super) struct Slots<'a> {
    pub(super) memslots: &'a KernelMemslots,
    /// Who asks.
    pub(super) vcpu: u32,
}

impl Memslots for Slots<'_> {
    fn slot(&self, gpa: Gpa) -> SlotLookup {
        let slot = match self.memslots.fault(0, gpa, Side::Shared, false) {
            SlotFault::Memory(slot) => slot,
            SlotFault::Retry => return SlotLookup::Invalid,
            SlotFault::Mmio => return SlotLookup::Hole,
            // Not met: this kernel has no private memory.
            SlotFault::MemoryFault => return SlotLookup::Hole,
        };
        SlotLookup::Slot(ept::mmu::Memslot {
            base: slot.gpa().first(),
            bytes: slot.npages() << PageSize::Size4K.shift(),
            hva: slot.userspace_addr,
            readonly: slot.flags.contains(SlotFlags::READONLY),
            log_dirty: slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES),
        })
    }

    /// Into the vCPU's ring, or the slot's bitmap where there are no rings.
    fn mark_page_dirty(&self, gpa: Gpa) {
        let marked = self.memslots.mark_page_dirty(Some(self.vcpu), 0, gpa);
        debug_assert!(marked, "a vCPU with a full ring does not run");
    }
}

#[cfg(test)]
mod tests {
    use memory_model::Hva;

    use super::*;

    #[test]
    fn k4_a_slot_that_goes_or_moves_is_never_a_hole_before_it_has() {
        /// A vCPU that faults on guest page 1 at that moment.
        struct Fault(Vec<SlotLookup>);
        impl KvmArch for Fault {
            fn memslots_swapped(&mut self, memslots: &KernelMemslots, _as_id: u32) {
                self.0.push(Slots { memslots, vcpu: 0 }.slot(Gpa(0x1000)));
            }
        }
        let mut memslots = KernelMemslots::new();
        let mut region = kvm_bindings::kvm_userspace_memory_region {
            memory_size: 0x4000,
            userspace_addr: 0x70_0000,
            ..Default::default()
        };
        let mut fault = Fault(Vec::new());
        let there = ept::mmu::Memslot {
            base: Gpa(0),
            bytes: 0x4000,
            hva: Hva(0x70_0000),
            readonly: false,
            log_dirty: false,
        };
        memslots.on(&mut fault).set_user_memory_region(&region).unwrap();
        assert_eq!(std::mem::take(&mut fault.0), [SlotLookup::Slot(there)]);
        region.guest_phys_addr = 0x1000;
        memslots.on(&mut fault).set_user_memory_region(&region).unwrap();
        let moved = ept::mmu::Memslot { base: Gpa(0x1000), ..there };
        assert_eq!(std::mem::take(&mut fault.0), [SlotLookup::Invalid, SlotLookup::Slot(moved)]);
        region.memory_size = 0;
        memslots.on(&mut fault).set_user_memory_region(&region).unwrap();
        assert_eq!(std::mem::take(&mut fault.0), [SlotLookup::Invalid, SlotLookup::Hole]);
    }
}
