//! Slots of a real VM, and what else its memory needs of KVM. All `unsafe` of this crate is here.
//!
//! ```text
//! mod.rs         KvmSlots: KVM_SET_USER_MEMORY_REGION, with a guest_memfd KVM_SET_USER_MEMORY_REGION2
//! dirty.rs       their dirty logs: bitmaps, bitmaps cleared by hand, rings
//! ring.rs        the ring that a vCPU shares with the kernel
//! private.rs     guest_memfd: memory that this process cannot reach, and which pages lie there
//! doorbells.rs   ioeventfds and coalesced MMIO
//! capability.rs  what a kernel may lack
//! ext.rs         the ioctls that kvm-ioctls lacks
//! ```
#![expect(unsafe_code, reason = "lending memory of this process to a guest is what this module is for")]

mod capability;
mod dirty;
mod doorbells;
mod ext;
mod private;
mod ring;

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use memory_model::{AddrRange, Gpa, RamBlock};

use crate::{
    DirtyLog, DirtyMethod, Errno, Side, Slot, SlotError, SlotExecutor, SlotFlags, SlotId, SlotLimits, SlotOp,
};

pub use capability::Capability;
pub use dirty::KvmRings;
pub use doorbells::KvmDoorbells;
pub use private::create_guest_memfd;

/// What QEMU assumes of a kernel that does not say how many slots it has.
const DEFAULT_COUNT: u32 = 32;

/// The slots of a KVM VM, in one of its address spaces.
///
/// The guest can write to a slot's memory at any time, so this holds the block of each slot it made until
/// the kernel has let go of it. Dropping it deletes its slots; a block that the kernel will not let go of
/// stays mapped for good.
pub struct KvmSlots {
    vm: Arc<VmFd>,
    limits: SlotLimits,
    address_space: u16,
    method: DirtyMethod,
    rings: KvmRings,
    /// The memory that the kernel may use.
    lent: BTreeMap<SlotId, Lent>,
}

struct Lent {
    pages: u64,
    _block: Arc<RamBlock>,
}

impl KvmSlots {
    /// The slots of `vm`, whose limits are read from it, in address space 0.
    pub fn new(vm: Arc<VmFd>) -> Self {
        let count = Capability::NR_MEMSLOTS.probe(&vm);
        let limits = SlotLimits {
            count: if count == 0 { DEFAULT_COUNT } else { count },
            max_bytes: SlotLimits::MAX_BYTES,
            readonly: Capability::READONLY_MEM.probe(&vm) != 0,
        };
        let (method, rings, lent) = Default::default();
        Self { vm, limits, address_space: 0, method, rings, lent }
    }

    /// The same, with the rings of a VM whose vCPUs are made elsewhere: all who set slots of one VM share them.
    pub fn with_rings(mut self, rings: KvmRings) -> Self {
        self.rings = rings;
        self
    }

    /// The slots in another address space, such as that of SMM (rule R7). Each has numbers of its own.
    pub fn in_address_space(vm: Arc<VmFd>, address_space: u16) -> Result<Self, SlotError> {
        let count = Capability::MULTI_ADDRESS_SPACE.probe(&vm).max(1);
        if u32::from(address_space) >= count {
            return Err(SlotError::Missing { capability: Capability::MULTI_ADDRESS_SPACE });
        }
        let mut slots = Self::new(vm);
        slots.address_space = address_space;
        Ok(slots)
    }

    /// The kernel's number of a slot.
    fn number(&self, id: SlotId) -> u32 {
        u32::from(self.address_space) << 16 | id.0
    }

    fn call(&self, op: &SlotOp) -> Result<(), SlotError> {
        let slot = self.number(op.slot().id);
        let answer = if op.slot().flags.contains(SlotFlags::GUEST_MEMFD) {
            let region = kvm_bindings::kvm_userspace_memory_region2 { slot, ..op.to_region2() };
            // SAFETY: as below; and the private half is nobody's memory but the guest's.
            unsafe { self.vm.set_user_memory_region2(region) }
        } else {
            let region = kvm_bindings::kvm_userspace_memory_region { slot, ..op.to_region() };
            // SAFETY: Once this returns, the guest can reach the memory of `op`'s slot, and nothing else. It
            // is memory that `op`'s block maps (`execute` has checked it), and no Rust reference is ever made
            // to a block's bytes. `op` keeps the block until `lent` does; `lent` lets go of it when the kernel
            // has.
            unsafe { self.vm.set_user_memory_region(region) }
        };
        answer.map_err(|error| SlotError::refused(op, Errno(error.errno())))
    }
}

impl SlotExecutor for KvmSlots {
    fn limits(&self) -> SlotLimits {
        self.limits
    }

    fn execute(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        // The kernel takes a move of a slot it does not know for a creation, so all but a deletion is
        // checked and held alike.
        let Some(result) = op.result() else {
            self.call(op)?;
            self.lent.remove(&op.slot().id);
            return Ok(());
        };
        if !maps(&result.block, &result) {
            let block = result.block.name().to_string();
            return Err(SlotError::NotMapped { op: Box::new(op.clone()), block });
        }
        if result.flags.contains(SlotFlags::GUEST_MEMFD) {
            Capability::USER_MEMORY2.require(&self.vm)?;
            Capability::GUEST_MEMFD.require(&self.vm)?;
        }
        self.call(op)?;
        self.lent.insert(result.id, Lent { pages: result.pages(), _block: result.block });
        Ok(())
    }

    fn dirty_method(&self) -> DirtyMethod {
        self.logged_by()
    }

    fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog)) {
        act(self);
    }

    fn set_side(&mut self, range: AddrRange<Gpa>, side: Side) -> Result<(), SlotError> {
        private::set_side(&self.vm, range, side)
    }

    fn punch_hole(&mut self, slot: &Slot, part: AddrRange<Gpa>) -> Result<(), Errno> {
        private::punch_hole(&slot.private_part(part).ok_or(Errno::EBADF)?)
    }
}

/// Whether `block` is mapped in this process and all of the slot's memory lies inside.
fn maps(block: &RamBlock, slot: &Slot) -> bool {
    // Even an empty read fails on a block that only describes somebody else's memory.
    let mapped = block.read(0, &mut []).is_ok();
    let offset = block.offset_of(slot.hva);
    mapped && offset.is_some_and(|offset| slot.gpa.bytes() <= u128::from(block.size() - offset))
}

impl Drop for KvmSlots {
    fn drop(&mut self) {
        for (id, lent) in std::mem::take(&mut self.lent) {
            let gone =
                kvm_bindings::kvm_userspace_memory_region { slot: self.number(id), ..Default::default() };
            // SAFETY: A size of 0 deletes: it takes memory from the guest and lends none.
            if unsafe { self.vm.set_user_memory_region(gone) }.is_err() {
                std::mem::forget(lent);
            }
        }
    }
}
