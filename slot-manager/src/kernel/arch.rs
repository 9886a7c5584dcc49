//! What happens around a change of the slots: the architecture's part of the kernel.

use memory_model::{AddrRange, Gpa};

use super::{KernelMemslots, Memslot, SlotChange};
use crate::Errno;

/// The MMU behind the slots, told at the points where the kernel tells its own (`kvm_arch_*`). Each method does
/// nothing unless given; `()` is a VM without an MMU.
///
/// Whoever is told sees the slots as a vCPU would that runs at that moment.
pub trait KvmArch {
    /// A set of slots was published and readers may still be in the one before: the generation has
    /// [`GENERATION_UPDATE`](super::GENERATION_UPDATE) (rule K3).
    fn memslots_swapped(&mut self, _kernel: &KernelMemslots, _as_id: u32) {}

    /// `kvm_arch_flush_shadow_memslot`: the slot's INVALID copy is in force, so nothing new can be mapped from it,
    /// and what is mapped must go (rule K4).
    fn flush_shadow_memslot(&mut self, _kernel: &KernelMemslots, _slot: &Memslot) {}

    /// `kvm_arch_prepare_memory_region`: makes room for what the MMU keeps of a slot. An error puts the old slot
    /// back in force, and the call fails with it.
    fn prepare_memory_region(&mut self, _change: &SlotChange) -> Result<(), Errno> {
        Ok(())
    }

    /// `kvm_arch_commit_memory_region`: the change is in force.
    fn commit_memory_region(&mut self, _kernel: &KernelMemslots, _change: &SlotChange) {}

    /// `kvm_arch_mmu_enable_log_dirty_pt_masked`: the pages of `mask`, bit 0 for the slot's page `first_page`, must
    /// fault on their next write.
    fn enable_log_dirty(&mut self, _slot: &Memslot, _first_page: u64, _mask: u64) {}

    /// `kvm_arch_pre_set_memory_attributes`: the pages of `range`, all in `slot`, are about to change sides, so what
    /// is mapped of them must go.
    fn pre_set_memory_attributes(
        &mut self,
        _kernel: &KernelMemslots,
        _slot: &Memslot,
        _range: AddrRange<Gpa>,
    ) {
    }
}

impl KvmArch for () {}
