//! The KVM machine: a VM and its vCPUs over kvm-ioctls.
//!
//! ```text
//! KvmVm (vm.rs)     /dev/kvm -> VM -> slots, vCPUs
//! KvmVcpu (vcpu.rs) the run loop: answer, check kick and deadline, KVM_RUN, exit
//!   coalesced.rs    the ring of writes that the kernel has kept back
//!   run_page.rs     struct kvm_run: KVM_RUN, what the guest wants, what it is answered
//!   thread.rs       the thread in KVM_RUN and its deadline timer
//!   signal.rs       the signal that brings it out
//!   regs.rs         kvm_regs and kvm_sregs <-> Regs and SystemRegs
//! live.rs           slots, leaves and tables as the kernel has them
//! host.rs           can KVM be used here, which flavour, which CPUID
//! ```
//!
//! No guest can hang its VMM. A run that goes on past its deadline, or is kicked, gets a signal; the handler
//! sets `kvm_run.immediate_exit`, so a signal that comes between the last check and `KVM_RUN` is not lost either.
//!
//! An exit is half of an instruction: KVM finishes port I/O and MMIO when it is entered again. Reading
//! registers finishes the half that needs no answer first, without running the guest, so that after
//! `OUT` they show RIP behind it. While a read waits for its answer they show the state before the instruction.

mod coalesced;
mod host;
mod live;
mod regs;
mod run_page;
pub(crate) mod signal;
mod thread;
mod vcpu;
mod vm;

pub use ept::live::KvmModule;
pub use host::{KvmHost, KvmUnavailable, cpuid_of_this_host};
pub use live::live_kernel;
pub use vcpu::KvmVcpu;
pub use vm::KvmVm;
