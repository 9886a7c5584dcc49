//! The software machine: an x86 CPU, `ept`'s MMU and simulated host frames.

mod bus;
pub mod cpu;
pub mod host;
mod kernel;
mod mmu;
mod options;
mod second_level;
mod tlb;
mod verification;
mod vm;

pub use bus::{AccessKind, Bus, BusFault, Paging};
pub use host::Host;
pub use kernel::SoftKernel;
pub use options::{SecondLevel, SoftOptions};
pub use second_level::SoftMmu;
pub use verification::{StaleUse, Verification};
pub use vm::SoftVm;
