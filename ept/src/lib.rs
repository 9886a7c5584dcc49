//! Page-table formats, walkers, a mapper, a verifier, a TLB, and both of KVM's MMUs: two-dimensional and shadow paging.
//!
//! Hardware gets from a guest-virtual to a host-physical address through two tables: the guest's own (GVA to GPA),
//! and one of the hypervisor's (GPA to HPA: EPT on Intel, NPT on AMD). This crate reads, walks and builds both, over
//! any memory that implements [`PhysMemory`]; it needs no VM and no operating system (`no_std` with `alloc`).
//!
//! ```text
//! GVA --[guest's tables]--> GPA --[EPT or NPT]--> HPA
//!       walk(Ia32e)               walk(Ept, Npt)        each alone
//!       ------------- nested_walk -------------         both: guest entries go through it, too
//!                                 mmu::Tdp              builds the second level on faults
//! GVA --[shadow of the guest's tables]------------> HPA
//!                   mmu::Shadow                         builds it, and keeps it in step
//! ```
//!
//! - [`Format`]: which bit of an entry means what, as rows of data. Reserved bits are those without a row.
//! - [`walk`]: the path, the merged rights, the page; or the exact fault ([`Fault`]). [`translate`]: the same without
//!   the path, several times as fast; [`translate_many`]: many addresses side by side. [`lookup`]: where an address leads,
//!   whoever asks.
//! - [`nested_walk`], [`nested_translate`]: both dimensions, references counted, faults told apart ([`NestedFault`]).
//! - [`Paging::from_registers`]: a guest's paging, in any mode, as its control registers select it.
//! - [`Mapper`]: map, unmap, protect, split, join, collect flags. [`mappings`]: every page a table maps.
//! - [`mmu`]: KVM's MMUs: faults that run beside each other, page sizes, zaps, dirty logging, access tracking.
//! - [`tlb`]: what a processor remembers of tables, and INVEPT, INVVPID and INVLPG, which make it forget.
//! - [`verify`]: all that is wrong with a guest's tables, given its slots and the host's frames.
//! - `live` (a feature; Linux, std): the tables of VMs that run under KVM, read from the kernel.
//!
//! Rule names such as M1 or V1 in these docs and in the tests number the rules of the Intel SDM (vol. 3C, EPT; vol. 3A,
//! chapter 4), of AMD's nested paging, and of KVM's MMU.
//!
//! # Example: an EPT made by hand
//!
//! ```
//! use ept::{Access, EptCaps, Eptp, Flags, MaxPhyAddr, Paging, SparseMemory, walk};
//! use ept::{Fault, Misconfiguration};
//!
//! let mut memory = SparseMemory::default();
//! for (entry, value) in [
//!     (0x1000, 0x2000 | 0x7),              // PML4E: read, write, execute
//!     (0x2000, 0x3000 | 0x7),              // PDPTE
//!     (0x3008, 0x4000 | 0x7),              // PDE of 2 MiB to 4 MiB
//!     (0x4018, 0x1234_5000 | 6 << 3 | 0x3), // PTE: write back, read and write
//!     (0x4020, 0x1234_6000 | 6 << 3 | 0x2), // PTE: write without read
//! ] {
//!     memory.add_frame(entry);
//!     memory.write_entry(entry, value)?;
//! }
//!
//! let (caps, width) = (EptCaps::all(), MaxPhyAddr::new(46).unwrap());
//! let eptp = Eptp::new(0x1000 | 3 << 3 | 6, caps, width).unwrap(); // four levels, write back
//! let ept = Paging::ept(eptp, caps, width);
//!
//! let page = walk(&memory, &ept, 0x20_3abc, Access::WRITE, Flags::Keep);
//! assert_eq!(page.outcome.unwrap().address, 0x1234_5abc);
//! let entries: Vec<_> = page.path.iter().map(|step| step.entry_address()).collect();
//! assert_eq!(entries, [0x1000, 0x2000, 0x3008, 0x4018]);
//!
//! // A fetch is denied: bit 2 is what was tried, bits 3 and 4 what the entries grant.
//! let denied = walk(&memory, &ept, 0x20_3000, Access::FETCH, Flags::Keep);
//! let Err(Fault::EptViolation { qualification }) = denied.outcome else { panic!() };
//! assert_eq!(qualification.bits(), 0b011_100);
//!
//! let reason = Misconfiguration::WriteWithoutRead;
//! let broken = walk(&memory, &ept, 0x20_4000, Access::READ, Flags::Keep);
//! assert_eq!(broken.outcome, Err(Fault::EptMisconfiguration { reason }));
//! # Ok::<(), ept::MemoryError>(())
//! ```
//!
//! # Known holes
//!
//! - Formats: no LAM, no HLAT. Sub-page permissions are a bit of the format; their own table is not walked.
//! - AMD: no memory encryption bit outside [`verify`], no GMET; NPT's memory types leave the host's PAT out.
//! - Rules whose source leaves room are as the newest manuals seem to mean them: bit 58 lets the processor's writes to
//!   guest tables through at every level, and without guest paging every address counts as one of user mode.
//! - A faulting walk sets no accessed flags (hardware may). The guest's flags are set before the final translation.
//! - [`Mapper`] builds tables of 64-bit entries with a root: not those of PAE and 32-bit paging, which are walked and
//!   listed alone.
//! - [`mmu::Tdp`]: a VM has one address space (no SMM) and no private memory. Page-modification logging is told by D,
//!   not by the processor's buffer.
//! - [`mmu::Shadow`]: no entry is made for MMIO (rules I1, I2).
#![no_std]

extern crate alloc;
#[cfg(feature = "live")]
extern crate std;

mod access;
mod batch;
mod eptp_switching;
mod error;
mod fault;
mod format;
mod judge;
#[cfg(feature = "live")]
pub mod live;
mod lookup;
mod mapper;
mod mappings;
pub mod mmu;
mod nested;
mod paging;
mod phys;
mod quick;
mod registers;
pub mod tlb;
pub mod verify;
mod walk;

pub use access::{Access, Controls, ProtectionKeys, Rights};
pub use batch::translate_many;
pub use eptp_switching::{EPTP_LIST_ENTRIES, VmFuncExit, eptp_switching};
pub use error::Error;
pub use fault::{Fault, PageFaultCode, Qualification};
pub use format::{
    Attributes, Caching, Cr3, Entry, Ept, EptCaps, Eptp, Format, Ia32e, Kind, Legacy32, Levels, MaxPhyAddr,
    MemoryType, Misconfiguration, Pae, Pat, PatType, Role, Used, effective_memory_type,
};
pub use lookup::{Mapped, lookup};
pub use mapper::{Flush, Mapper, Sizes};
pub use mappings::{Mapping, Mappings, mappings};
pub use nested::{
    NestedFault, NestedLeaf, NestedWalk, nested_pdptes, nested_translate, nested_walk, try_guest_table,
    try_nested_translate, try_nested_translate_by,
};
pub use paging::Paging;
pub use phys::{FrameAllocator, MemoryError, PhysMemory, SparseMemory};
pub use registers::{Processor, Registers, pdptes};
pub use walk::{Flags, Leaf, Path, Step, Walk, translate, try_translate, walk};

/// The program of `README.md`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
