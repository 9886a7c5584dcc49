//! The shadow MMU: each rule by number, and random guests against the walker.

mod faults;
mod legacy;
mod levels;
mod limits;
mod prefetch;
mod random;
mod tables;
mod world;
mod writes;
