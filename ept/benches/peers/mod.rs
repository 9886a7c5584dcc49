//! Other walkers over the same tables.

pub mod multiarch;
pub mod raw;
