//! Invariant 14, and what 7 and 8 mean to shadow tables.

mod directed;
mod oracle;
mod random;
mod world;
