//! Other walkers over the same tables.

pub mod memflow;
pub mod multiarch;
pub mod raw;
