//! The software machine: an x86 CPU, one of `ept`'s MMUs and a simulated host, tied together as KVM ties them.
//!
//! ```text
//! Cpu --Bus--> Tlb --miss--> walk --fault--> SoftMmu (Tdp | Shadow) --slot--> KernelMemslots
//!                                                                   --hva---> Host
//! ```
//!
//! | part | what |
//! |---|---|
//! | [`SoftVm`], [`SoftOptions`] | the machine, and what it is made of |
//! | [`SoftKernel`] | slots, host and MMU; what happens to them: [`SoftKernel::host_event`] |
//! | [`host`] | this process's memory and the frames behind it |
//! | [`irqchip`] | what interrupts the processors, and the time |
//! | [`SoftVm::verify`] | all tables of the MMU, and all that the processors remember of them |
//!
//! Each processor has a translation cache, one entry for each page and use of it. What takes rights or mappings back, an
//! MMU's change or a guest's INVLPG, flushes it before the next access: nothing outlives what the tables allow, but for
//! changes that a guest has made to its own tables and not flushed. One lock over the kernel is held while a processor
//! runs a slice of instructions.

mod bus;
pub mod cpu;
mod faults;
mod guest_paging;
pub mod host;
pub mod irqchip;
mod kernel;
mod mmu;
mod options;
mod second_level;
mod table_tlb;
mod tlb;
mod verification;
mod vm;

pub use bus::{AccessKind, Bus, BusFault, Paging};
pub use host::Host;
pub use kernel::SoftKernel;
pub use options::{SecondLevel, SoftOptions};
pub use second_level::SoftMmu;
pub use verification::{Remembered, StaleUse, Verification};
pub use vm::SoftVm;
