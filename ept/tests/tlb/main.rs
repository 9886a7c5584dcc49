//! What a processor remembers, and what each instruction makes it forget: rules M7, A3 and IV1 to IV6.

mod agreement;
mod operands;
mod stale;
mod subset;
mod world;
