//! VMs and vCPUs with one run loop, whichever machine is behind them: KVM, or a software x86 CPU over `ept`'s MMUs.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use std::time::Duration;
//! use memory_model::{AddrRange, AddressSpace, Gpa, Gva, MemoryError, RamBlock, RegionTree};
//! use slot_manager::SlotManager;
//! use vcpu::boot::{GuestMap, LongMode, Ring};
//! use vcpu::{Budget, Entry, Exit, HostView, Vcpu, Vm, Witness, soft::SoftVm};
//!
//! // 2 MiB of RAM, seen by a VM through a slot.
//! let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
//! let ram = RamBlock::anonymous("ram", 0x20_0000)?;
//! space.update(|tree| {
//!     let ram = tree.ram("ram", ram.clone())?;
//!     tree.add(tree.root(), 0, ram)
//! })?;
//! let vm = SoftVm::new()?;
//! space.register(Arc::new(Mutex::new(SlotManager::new(vm.slots()))))?;
//!
//! // mov [0x180000], esp; mov al, 7; out 0xf4, al
//! ram.write(0x10_0000, &[0x89, 0x24, 0x25, 0, 0, 0x18, 0, 0xb0, 7, 0xe6, 0xf4])?;
//! let all = GuestMap::identity(AddrRange::new(Gva(0x10_0000), 0x10_0000).unwrap());
//! let (entry, ring) = (0x10_0000, Ring::User);
//! let guest = LongMode { entry, ring, handlers: vec![], maps: vec![all] };
//! let (regs, system) = guest.install(&space.view())?;
//! let mut vcpu = vm.create_vcpu(0)?;
//! vcpu.set_system_regs(&system)?;
//! vcpu.set_regs(&regs)?;
//!
//! let exit = vcpu.run(Entry::Resume, &Budget::time(Duration::from_secs(5)))?;
//! assert_eq!(exit, Exit::IoOut { port: 0xf4, size: 1, data: vec![7] });
//! // The page that the guest wrote has a frame, and the EPT leads to it.
//! let hva = space.view().hva(Gpa(0x18_0000)).unwrap();
//! let leaf = vm.leaf(Gva(0x18_0000), Gpa(0x18_0000));
//! let (Witness::Seen(hpa), Witness::Seen(leaf)) = (vm.frame(hva), leaf) else { panic!() };
//! assert_eq!(leaf.hpa, hpa);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | part | what |
//! |---|---|
//! | [`Vm`], [`Vcpu`] | what every machine can do; [`Entry`] -> [`Exit`], always with a [`Budget`] |
//! | [`KvmVm`] | the machine of `/dev/kvm` |
//! | [`soft::SoftVm`] | the machine without one: CPU, MMU (EPT, NPT or shadow) and host frames in software |
//! | [`HostEvent`] | what happens to the host's memory behind a guest: pages given back, moved, protected |
//! | [`boot`] | a guest's first tables and registers: in long mode at ring 3 or 0; by Multiboot 1, PVH or Linux's protocol |
//! | [`HostView`] | what a host shows of a VM's inside: slots, frames, second-level leaves |
//!
//! Known holes: the software CPU computes no floating point and has no call gates, task switches or virtual-8086 mode; one
//! vCPU of a software machine runs at a time.

pub mod boot;
mod error;
mod exit;
mod guest_tables;
mod kick;
pub mod kvm;
mod pagemap;
mod regs;
pub mod soft;
mod vm;
mod witness;

pub use error::VcpuError;
pub use exit::{Budget, Entry, Exit, Limit, MmioData};
pub use guest_tables::GuestTables;
pub use kick::Kick;
pub use kvm::KvmVm;
pub use pagemap::frame as pagemap_frame;
pub use regs::{DescriptorTable, Gpr, Regs, Segment, SystemRegs, cr0, cr3, cr4, efer, rflags};
pub use vm::{HostEvent, Vcpu, Vm};
pub use witness::{
    FaultEvent, FaultRecord, HostView, MappedPage, SecondLevelLeaf, SecondLevelTables, Verification, Witness,
};

/// The program of `README.md`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
