//! VMs and vCPUs with one run loop: KVM, and a software x86 CPU with its own EPT.

mod exit;
mod regs;
pub mod soft;

pub use exit::{Budget, Entry, Exit, Limit, MmioData};
pub use regs::{DescriptorTable, Gpr, Regs, Segment, SystemRegs, cr0, cr4, efer, rflags};
