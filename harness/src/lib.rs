//! Boots guests and follows every page GVA -> GPA -> HVA -> HPA: the library behind the program `memvirt`.
//!
//! ```
//! use harness::{Mmu, Verdict, run_guest};
//! let guest = guest_tests::built_in().find(|guest| guest.name == "rom_write").unwrap();
//! let image = guest_tests::Image::parse(guest.elf)?;
//! let report = run_guest(guest.name, &image, Mmu::Ept)?;
//! assert_eq!(report.verdict, Verdict::Pass);
//! let page = &report.chains[0];
//! assert_eq!(page.region.as_deref(), Some("rom"));
//! assert_eq!(page.hpa, page.leaf.as_ref().map(|leaf| leaf.hpa));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | part | what |
//! |---|---|
//! | [`Machine`] | manifest -> address space -> slots -> VM -> vCPU, and the run |
//! | [`Observer`], [`Chain`] | one address followed all the way, a witness for each link |
//! | [`judge`], [`Report`] | from a run to a verdict, and to what helps to find out why |
//! | [`map_text`] | where a guest's memory is, as text that two runs have in common |
//! | [`inspect`] | the VMs of another process: slots, tables, what is wrong with them |
//! | [`lab`] | KVM inside an emulator that has NPT or EPT |
//! | [`report`] | a page for people: where all memory is, each page's walk, faults, machines side by side |
//! | [`vmm`] | the memory of a VM that another VMM has made, for its own tests |
//! | [`Mmu`] | the machines there are, and whether they can run here |
//!
//! vCPUs take turns on one thread; what a manifest has the host do happens while none runs. KVM's second level is read from
//! the kernel, which takes root; elsewhere it is reported as not checked.

mod chain;
mod devices;
mod error;
mod exits;
mod explain;
mod golden;
pub mod inspect;
mod judge;
pub mod lab;
mod machine;
mod mmu;
mod pages;
pub mod report;
mod scene;
mod steps;
pub mod vmm;

pub use chain::{Chain, Check, Known, LinkKind, Observer, Outcome};
pub use devices::{PORT_BELL, PORT_CONSOLE, PORT_EXIT};
pub use error::HarnessError;
pub use exits::Exits;
pub use explain::plain;
pub use golden::map_text;
pub use judge::{Counts, Report, Verdict, judge, run_guest};
pub use machine::{Ending, Machine, Run, Slots};
pub use memory_model::Gpa;
pub use mmu::Mmu;
pub use scene::{CodeLine, Scene};
pub use vcpu::Witness;

/// The program of `README.md`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
