//! The software machine's MMUs under a guest: what its processor may remember, what the host takes away, and tables that
//! run out. Each test runs on each second level.

mod host;
mod machine;
mod tables;
mod tlb;
