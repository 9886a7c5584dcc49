//! The kernel side of the software machine: slots, host frames and the second-level MMU, tied together as
//! `struct kvm` ties them.

use ept::mmu::{Memslots, SlotLookup, Tdp};
use ept::{Ept, EptCaps, Flags, Format, Levels, MaxPhyAddr, walk};
use memory_model::{AddrRange, Gpa, Hpa, PageSize};
use slot_manager::{
    DirtyLog, Errno, KernelCaps, KernelMemslots, KvmArch, Memslot, Side, SlotChange, SlotError, SlotFault,
    SlotFlags, SlotOp, SlotRecord,
};

use super::cpu::PHYSICAL_ADDRESS_BITS;
use super::frames::FrameTable;
use crate::{SecondLevelLeaf, VcpuError};

/// Width of physical addresses, the host's and the guest's.
pub(super) const MAX_PHY_ADDR: MaxPhyAddr = match MaxPhyAddr::new(PHYSICAL_ADDRESS_BITS as u8) {
    Some(bits) => bits,
    None => panic!("MAXPHYADDR is 32 to 52 bits"),
};

/// What the simulated processor's EPT can do: a recent server's.
fn ept_caps() -> EptCaps {
    EptCaps::all() - EptCaps::LEVELS_5
}

/// Slots, frames and second-level tables of one VM. Its fields are open, so that a test can look at them, or
/// break one and see who notices.
pub struct SoftKernel {
    /// The memory slots.
    pub memslots: KernelMemslots,
    /// The host's frames.
    pub frames: FrameTable,
    /// The second-level MMU.
    pub tdp: Tdp,
}

impl SoftKernel {
    /// A VM without slots, with an empty 4-level EPT.
    pub(super) fn new() -> Result<Self, VcpuError> {
        let frames = FrameTable::default();
        // The format does not depend on where the root lies; `Tdp` allocates that.
        let ept = Ept { accessed_dirty: true, ..Ept::new(Levels::Four, ept_caps(), MAX_PHY_ADDR) };
        let tdp = Tdp::new(Format::ept(ept), &frames)?;
        let caps = KernelCaps {
            max_gfn: Gpa(MAX_PHY_ADDR.last()).page_number(),
            // No access of its guests is private, and none leaves as a memory fault.
            memory_attributes: None,
            ..KernelCaps::default()
        };
        Ok(Self { memslots: KernelMemslots::with_caps(caps), frames, tdp })
    }

    /// The slots, and the MMU that hears of what happens to them.
    fn parts(&mut self) -> (&mut KernelMemslots, SlotMmu<'_>) {
        let Self { memslots, frames, tdp } = self;
        (memslots, SlotMmu { frames, tdp })
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

    /// What the second level says of `gpa`.
    pub fn leaf(&self, gpa: Gpa) -> Option<SecondLevelLeaf> {
        let read = ept::Access::READ.by_user();
        let walk = walk(&self.frames, self.tdp.paging(), gpa.0, read, Flags::Keep);
        let (leaf, last) = (walk.outcome.ok()?, *walk.path.last()?);
        Some(SecondLevelLeaf {
            hpa: Hpa(leaf.address),
            size: leaf.size,
            rights: leaf.rights(),
            entry_address: Hpa(last.entry_address()),
            entry: leaf.entry,
        })
    }
}

/// The second level, as it hears of slots.
struct SlotMmu<'a> {
    frames: &'a FrameTable,
    tdp: &'a mut Tdp,
}

impl SlotMmu<'_> {
    fn write_protect(&mut self, range: AddrRange<Gpa>) {
        self.tdp.write_protect(range, self.frames).expect(OWN_TABLES);
    }
}

impl KvmArch for SlotMmu<'_> {
    /// What goes or moves leaves the second level at once (rule Z3).
    fn flush_shadow_memslot(&mut self, _kernel: &KernelMemslots, slot: &Memslot) {
        self.tdp.zap(slot.gpa(), self.frames).expect(OWN_TABLES);
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

/// Zapping allocates nothing and reads only tables that this VM allocated.
const OWN_TABLES: &str = "the second level's own tables are in the frame table";

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
