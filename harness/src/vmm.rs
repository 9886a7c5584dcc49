//! The memory of a VM that somebody else's VMM has made: whether KVM has it where the VMM thinks it has.
//!
//! For a VMM's own tests. All that is needed is its VM file and its guest memory, as `kvm-ioctls` and `vm-memory` have them:
//!
//! ```no_run
//! # fn test(vm: &std::os::fd::OwnedFd, memory: &vm_memory::GuestMemoryMmap<()>) {
//! use vcpu::Witness;
//! match harness::vmm::check(vm, memory, None) {
//!     Witness::Seen(found) => assert_eq!(found.findings, Vec::<String>::new()),
//!     Witness::Absent => panic!("no VM has this file"),
//!     Witness::NotShown(why) => println!("not checked: {why}"),
//! }
//! # }
//! ```

use std::os::fd::AsRawFd;

use ept::live::{LiveError, LiveVm, Pagemap};
use memory_model::{AddrRange, Gpa, Hva};
use vcpu::Witness;
use vcpu::kvm::live_kernel;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

use crate::inspect::{Inspection, SlotView};

/// Looks at a VM of this process while none of its vCPUs runs: KVM's slots against `memory`, every second-level leaf
/// against the slots and this process's frames, every table against the rules of its format. What is wrong is in
/// [`Inspection::findings`], a line each. With `gpa`, that address is followed to its frame, too.
///
/// Takes root, and a kernel with BTF; elsewhere nothing is shown, and why.
pub fn check<M: GuestMemoryBackend>(vm: &impl AsRawFd, memory: &M, gpa: Option<Gpa>) -> Witness<Inspection> {
    let kernel = match live_kernel() {
        Ok(kernel) => kernel,
        Err(why) => return Witness::NotShown(why.into()),
    };
    let look = || -> Result<Option<Inspection>, LiveError> {
        let Some(live) = LiveVm::of_fd(kernel, vm)? else { return Ok(None) };
        let pagemap = Pagemap::of_this_process()?;
        Inspection::of(&live, (std::process::id(), 0), &pagemap, gpa).map(Some)
    };
    match look() {
        Ok(Some(mut found)) => {
            found.findings.splice(0..0, misplaced(memory, &found.slots));
            Witness::Seen(found)
        }
        Ok(None) => Witness::Absent,
        Err(error) => Witness::NotShown(error.to_string().into()),
    }
}

/// What a VMM takes for guest memory, and KVM does not have there. A slot for something else is the VMM's own affair.
fn misplaced<M: GuestMemoryBackend>(memory: &M, slots: &[SlotView]) -> Vec<String> {
    let mut wrong = Vec::new();
    for region in memory.iter() {
        let Some(range) = AddrRange::new(Gpa(region.start_addr().raw_value()), region.len().into()) else {
            continue;
        };
        let Ok(first) = region.get_host_address(MemoryRegionAddress(0)) else {
            wrong.push(format!("guest memory at {range} is nowhere in this process"));
            continue;
        };
        let mut next = range.first();
        loop {
            let hva = Hva(first as u64 + (next.0 - range.first().0));
            let slot = slots.iter().find(|slot| slot.space == 0 && slot.contains(next));
            match slot {
                None => wrong.push(format!("guest memory at {next}: no slot has it")),
                Some(slot) if slot.hva_of(next) != hva => wrong.push(format!(
                    "guest memory at {next}: the VMM has it at {hva}, slot {} at {}",
                    slot.id,
                    slot.hva_of(next)
                )),
                Some(_) => {}
            }
            // From the next slot on, or to the end of this one.
            let after = match slot {
                Some(slot) => slot.gpa.checked_add(slot.bytes),
                None => {
                    slots.iter().filter(|slot| slot.space == 0 && slot.gpa > next).map(|slot| slot.gpa).min()
                }
            };
            match after.filter(|after| *after <= range.last()) {
                Some(after) => next = after,
                None => break,
            }
        }
    }
    wrong
}

impl SlotView {
    fn contains(&self, gpa: Gpa) -> bool {
        gpa.checked_sub(self.gpa).is_some_and(|offset| offset < self.bytes)
    }

    /// Where it has an address that it contains.
    fn hva_of(&self, gpa: Gpa) -> Hva {
        Hva(self.hva.0 + (gpa.0 - self.gpa.0))
    }
}
