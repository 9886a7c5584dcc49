//! The in-process kernel by itself, rule by rule.

mod address_spaces;
mod attributes;
mod errors;
mod guest_memfd;
mod log;
mod ring;
mod swaps;

use kvm_bindings::kvm_userspace_memory_region as Region;
use slot_manager::KernelMemslots;

const LOG: u32 = 1;
const READONLY: u32 = 2;
const PAGE: u64 = 0x1000;

fn region(slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Region {
    Region { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva }
}

/// Slot 0 at 0x10000, slot 1 at 0x20000, four pages each.
fn two_slots() -> KernelMemslots {
    let mut kernel = KernelMemslots::new();
    kernel.set_user_memory_region(&region(0, 0, 0x1_0000, 0x4000, 0x7f00_0000_0000)).unwrap();
    kernel.set_user_memory_region(&region(1, LOG, 0x2_0000, 0x4000, 0x7f00_0000_0000)).unwrap();
    kernel
}
