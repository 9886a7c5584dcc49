//! The tables of VMs that run under KVM, read from the kernel.
//!
//! KVM has no call that shows its page tables. Root may read the kernel's memory all the same, by two BPF programs of a
//! few instructions or in `/proc/kcore` ([`Means`]); BTF, the kernel's description of itself, says where the fields of its
//! structures lie. What comes of it is memory like any other: [`walk`](crate::walk) and [`verify`](crate::verify) take it as it
//! is.
//!
//! ```text
//! process -> /proc/PID/fd -> kvm-vm -> struct kvm            LiveVm
//!   memslots -> kvm_memory_slot                                LiveSlot      GPA -> HVA
//!   arch.active_mmu_pages -> kvm_mmu_page -> spt               LivePage      shadow MMU: every table
//!   arch.tdp_mmu_roots -> kvm_mmu_page -> spt -> ... -> spt     LiveRoot      TDP MMU: roots, and what is below
//!   vcpu_array -> kvm_vcpu -> arch.mmu -> root                 which root a vCPU uses
//!   stat, kvm_vcpu -> stat                                     KVM's own counts; KvmStats has them by file
//! read twice alike                                           LiveTables    walk, mappings, verify, check, limits
//! trace events of the VM's threads                           Trace         replay: leaves are those that were installed, faults as many as KVM counts
//! ```
//!
//! # Example
//!
//! `cargo run -p ept --features live --example live_tables PID` shows the VMs of a process. In a program:
//!
//! ```no_run
//! use ept::live::{Kernel, LiveVm};
//! let kernel = Kernel::open()?;
//! for vm in LiveVm::of_process(&kernel, 4711)? {
//!     let tables = vm.tables()?;
//!     for root in tables.roots() {
//!         println!("{:?}: {} pages", root.vcpus, ept::mappings(&tables, &root.paging).count());
//!     }
//!     print!("{}", vm.check()?);
//! }
//! # Ok::<(), ept::live::LiveError>(())
//! ```
//!
//! # What it relies on
//!
//! - Names of the kernel's fields, all of them in one table (`layout`): a kernel that has another is told by
//!   [`LiveError::NoField`]. They are those of Linux 6.1 to 6.18.
//! - The format of the tables follows from the module that drives the VM and from its parameter `ept` or `npt`; levels, and
//!   whether hardware sets flags, from `kvm_mmu_page.role`.
//! - Presence and leaves are what hardware takes them for. Of KVM's own bits one counts, and on `kvm_pvm` alone: an
//!   entry of a root without bit 11 (`SPTE_MMU_PRESENT`) is the host's ([`SwitcherEntry`]).
//! - Where physical memory lies in the kernel's addresses is told by `/proc/kcore`; by BPF it is the difference of a root's
//!   two addresses: its descriptor's, and the vCPU's.
//! - Nothing takes KVM's locks: a reading counts if the next one is the same, but for accessed and dirty flags.
//!
//! # Known holes
//!
//! Tables of nested guests are counted and not checked; memory that the host encrypts (SME, SEV, TDX) is not known;
//! roots of PAE paging have leaves here, and no walk. Dirty logs are not read. Frames are compared with the page map of the
//! process that was named: it must be the one that made the VM, not one that has inherited its file. Of slots with private
//! memory no frame is known. In `/proc/kcore` a wrong address may read as zeroes, where BPF says that nothing is there.

mod bpf;
mod btf;
mod check;
mod counters;
mod error;
mod host;
mod kcore;
mod kernel;
mod layout;
mod leaf;
mod leaves;
mod limit;
mod memory;
mod page;
mod pagemap;
mod reading;
mod stats;
mod stretches;
#[expect(unsafe_code, reason = "system calls that no safe crate here has")]
mod sys;
mod tables;
mod trace;
mod vm;

pub use btf::BtfError;
pub use check::LiveReport;
pub use error::LiveError;
pub use host::{KvmModule, SecondLevel, host_ram};
pub use kernel::Kernel;
pub use leaf::LiveLeaf;
pub use leaves::LeafFinding;
pub use limit::{Limit, Limits};
pub use memory::Means;
pub use page::LivePage;
pub use pagemap::Pagemap;
pub use reading::SwitcherEntry;
pub use stats::KvmStats;
pub use tables::{LiveRoot, LiveTables};
pub use trace::{Event, Happened, Replay, Trace, TraceFinding, VcpuFault};
pub use vm::{LiveSlot, LiveVm};
