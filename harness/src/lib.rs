//! Boots guests and follows every page GVA -> GPA -> HVA -> HPA: the library behind the program `memvirt`.

mod chain;
mod devices;
mod error;
mod judge;
mod machine;
mod mmu;

pub use chain::{Chain, Check, Known, LinkKind, Observer, Outcome};
pub use devices::{PORT_CONSOLE, PORT_EXIT};
pub use error::HarnessError;
pub use judge::{Counts, Report, Verdict, judge, run_guest};
pub use machine::{Ending, Machine, Run, Slots};
pub use mmu::Mmu;
