//! The software machine: an x86 CPU, `ept`'s MMU and simulated host frames.

mod bus;

pub use bus::{AccessKind, Bus, BusFault, Paging};
