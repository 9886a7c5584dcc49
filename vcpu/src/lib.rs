//! VMs and vCPUs with one run loop: KVM, and a software x86 CPU with its own EPT.

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
pub use regs::{DescriptorTable, Gpr, Regs, Segment, SystemRegs, cr0, cr4, efer, rflags};
pub use vm::{Vcpu, Vm};
pub use witness::{HostView, SecondLevelLeaf, Witness};
