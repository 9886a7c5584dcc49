//! Slots of a real VM: `KVM_SET_USER_MEMORY_REGION`, the only `unsafe` of this crate.
#![expect(unsafe_code, reason = "lending memory of this process to a guest is what this module is for")]

use std::collections::BTreeMap;
use std::sync::Arc;

use kvm_ioctls::{Cap, VmFd};
use memory_model::RamBlock;

use crate::{Errno, SlotError, SlotExecutor, SlotId, SlotLimits, SlotOp};

/// What QEMU assumes of a kernel that does not say how many slots it has.
const DEFAULT_COUNT: u32 = 32;

/// The slots of a KVM VM.
///
/// The guest can write to a slot's memory at any time, so this holds the block of each slot it made until
/// the kernel has let go of it. Dropping it deletes its slots; a block that the kernel will not let go of
/// stays mapped for good.
pub struct KvmSlots {
    vm: Arc<VmFd>,
    limits: SlotLimits,
    /// The memory that the kernel may use.
    lent: BTreeMap<SlotId, Arc<RamBlock>>,
}

impl KvmSlots {
    /// The slots of `vm`, whose limits are read from it.
    pub fn new(vm: Arc<VmFd>) -> Self {
        let count = u32::try_from(vm.check_extension_int(Cap::NrMemslots)).unwrap_or(0);
        let limits = SlotLimits {
            count: if count == 0 { DEFAULT_COUNT } else { count },
            max_bytes: SlotLimits::MAX_BYTES,
            readonly: vm.check_extension(Cap::ReadonlyMem),
        };
        Self { vm, limits, lent: BTreeMap::new() }
    }

    fn call(&self, op: &SlotOp) -> Result<(), SlotError> {
        // SAFETY: Once this returns, the guest can reach the memory of `op`'s slot, and nothing else. It
        // is memory that `op`'s block maps (`execute` has checked it), and no Rust reference is ever made to
        // a block's bytes. `op` keeps the block until `lent` does; `lent` lets go of it when the kernel has.
        unsafe { self.vm.set_user_memory_region(op.to_region()) }
            .map_err(|error| SlotError::refused(op, Errno(error.errno())))
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
        self.call(op)?;
        self.lent.insert(result.id, result.block);
        Ok(())
    }
}

/// Whether `block` is mapped in this process and all of the slot's memory lies inside.
fn maps(block: &RamBlock, slot: &crate::Slot) -> bool {
    // Even an empty read fails on a block that only describes somebody else's memory.
    let mapped = block.read(0, &mut []).is_ok();
    let offset = block.offset_of(slot.hva);
    mapped && offset.is_some_and(|offset| slot.gpa.bytes() <= u128::from(block.size() - offset))
}

impl Drop for KvmSlots {
    fn drop(&mut self) {
        for (id, block) in std::mem::take(&mut self.lent) {
            let gone = kvm_bindings::kvm_userspace_memory_region { slot: id.0, ..Default::default() };
            // SAFETY: A size of 0 deletes: it takes memory from the guest and lends none.
            if unsafe { self.vm.set_user_memory_region(gone) }.is_err() {
                std::mem::forget(block);
            }
        }
    }
}
