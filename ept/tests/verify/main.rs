//! The verifier: each invariant with tables that keep and that break it, flipped bits, hostile tables, and a slow
//! second verifier.

mod aliases;
mod entries;
mod flips;
mod hostile;
mod leaves;
mod oracle;
mod random;
mod reports;
mod shadow;
mod tables;
mod world;
