//! The verifier: each invariant with tables that keep and that break it, flipped bits, hostile tables, and a slow
//! second verifier.

mod flips;
mod hostile;
mod invariants;
mod oracle;
mod random;
mod world;
