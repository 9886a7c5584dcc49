//! Memory slots: from a flat view to `KVM_SET_USER_MEMORY_REGION`, planned and checked.
//!
//! Usable without KVM: here the kernel is [`KernelMemslots`], in this process. Put [`KvmSlots`] in its place
//! and the same lines set the memory of a real VM.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use memory_model::{AddressSpace, Gpa, MemoryError, RamBlock, RegionTree};
//! use slot_manager::{KernelMemslots, SlotFlags, SlotManager, SlotRecord};
//!
//! let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
//! let slots = Arc::new(Mutex::new(SlotManager::new(KernelMemslots::new())));
//! space.register(slots.clone())?;
//!
//! space.update(|tree| {
//!     let ram = tree.ram("pc.ram", RamBlock::anonymous("pc.ram", 0x20_0000)?)?;
//!     tree.add(tree.root(), 0, ram)?;
//!     // The last 64 KiB below 1 MiB are shown read-only: one slot becomes three.
//!     let bios = tree.alias("isa-bios", ram, 0xf_0000, 0x1_0000)?;
//!     tree.set_readonly(bios, true)?;
//!     tree.add_with_priority(tree.root(), 0xf_0000, bios, 1)
//! })?;
//!
//! let slots = slots.lock().unwrap();
//! let bios = slots.registry().by_gpa(Gpa(0xf_fff0)).unwrap();
//! assert_eq!(bios.flags, SlotFlags::READONLY);
//! assert_eq!(bios.hva_of(Gpa(0xf_fff0)), space.view().hva(Gpa(0xf_fff0)));
//! // The kernel's side agrees.
//! let memslot = slots.executor().gfn_to_memslot(Gpa(0xf_fff0)).unwrap();
//! assert_eq!((memslot.base_gfn(), memslot.npages()), (0xf0, 16));
//! assert_eq!(slots.executor().slots().len(), 3);
//! # Ok::<(), MemoryError>(())
//! ```
//!
//! | part | what |
//! |---|---|
//! | [`plan`], [`plan_change`] | slots present and a view -> ordered [`SlotOp`]s, and whether vCPUs must pause |
//! | [`SlotRegistry`] | slots by number, guest address and host address |
//! | [`SlotManager`] | the listener: plans each transaction, carries it out wholly or not at all; collects dirty pages; converts pages to a [`Side`] |
//! | [`SlotExecutor`] | who does it: [`KvmSlots`], [`KernelMemslots`], [`Recorder`] |
//! | [`DirtyLog`], [`DirtyMethod`] | how they log: bitmaps, bitmaps cleared by hand, rings with a [`Reaper`] |
//! | [`Capability`] | what a kernel may lack, and what is missing then |
//! | [`KvmDoorbells`] | ioeventfds and coalesced MMIO of an address space |
//! | [`KernelMemslots`] | the kernel's side in this process: its errors in its order, its swaps, its dirty logs and rings |
//! | [`KvmArch`] | an MMU behind it, told of each step |
//!
//! What the planner promises: slots that stay are not touched, dirty logging is switched in place, memory
//! that moves is moved by one call, numbers are the lowest free ones, and a view that does not fit is an
//! error before the first call.
//!
//! What the manager promises: vCPUs are stopped exactly when they would see a hole, or when a slot that is logged
//! goes ([`SlotManager::pause_by`]); and a page written while its slot was logged is collected, though slots split,
//! merge and move meanwhile.
//!
//! Pages of slots with a `guest_memfd` are made private or shared by [`SlotManager::convert`] (rule R10). An access
//! that finds its page on the other side is what asks for it: [`SlotFault::MemoryFault`] in this process,
//! `KVM_EXIT_MEMORY_FAULT` of KVM.
//!
//! Known holes: rings with a bitmap besides, which x86 has not; and no software vCPU has private memory yet, so none
//! leaves its guest with that fault.

mod dirty;
mod error;
mod executor;
mod kernel;
mod kvm;
mod manager;
mod plan;
mod recorder;
mod registry;
mod side;
mod slot;

pub use dirty::{DirtyLog, DirtyMethod, DirtyPages, Reaper, SlotPages};
pub use error::{Errno, SlotError};
pub use executor::{SlotExecutor, SlotLimits};
pub use kernel::{
    DirtyGfn, DirtyRing, GENERATION_UPDATE, Ioctls, KernelCaps, KernelMemslots, KvmArch, MAX_GFN, MAX_PAGES,
    MemfdRange, Memslot, MemslotSet, RESERVED_ENTRIES, SlotChange, SlotFault, USER_END, USER_MEM_SLOTS,
};
pub use kvm::{Capability, KvmDoorbells, KvmRings, KvmSlots, create_guest_memfd};
pub use manager::SlotManager;
pub use plan::{SlotPlan, plan, plan_change};
pub use recorder::Recorder;
pub use registry::{SlotRecord, SlotRegistry};
pub use side::Side;
pub use slot::{Slot, SlotFlags, SlotId, SlotOp};

/// The program of `README.md`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
