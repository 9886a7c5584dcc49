//! The TDP MMU, rule by rule.

mod ages;
mod arena;
mod exits;
mod faults;
mod host;
mod levels;
mod logs;
mod random;
mod threads;
mod zaps;
