//! Guest memory as QEMU describes it: a tree of regions, rendered to a flat view, backed by RAM blocks.
//!
//! Usable alone, without KVM:
//!
//! ```
//! use memory_model::{AddressSpace, Gpa, MemoryError, RamBlock, RegionTree};
//!
//! let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
//! space.update(|tree| {
//!     let ram = tree.ram("pc.ram", RamBlock::anonymous("pc.ram", 0x20_0000)?)?;
//!     tree.add(tree.root(), 0, ram)?;
//!     // The same memory again, higher up: two guest addresses, one page.
//!     let mirror = tree.alias("mirror", ram, 0x1000, 0x1000)?;
//!     tree.add(tree.root(), 0x1_0000_0000, mirror)
//! })?;
//!
//! let view = space.view();
//! assert_eq!(view.hva(Gpa(0x1234)), view.hva(Gpa(0x1_0000_0234)));
//! assert_eq!(
//!     view.to_string(),
//!     "  0000000000000000-00000000001fffff (ram): pc.ram\n\
//!      \x20 0000000100000000-0000000100000fff (ram): pc.ram @0000000000001000\n"
//! );
//! # Ok::<(), MemoryError>(())
//! ```
//!
//! | part | what |
//! |---|---|
//! | [`Gva`] [`Gpa`] [`Hva`] [`Hpa`], [`AddrRange`] | the four addresses; all address arithmetic |
//! | [`RegionTree`] | containers, RAM, ROM, devices, IOMMUs, reservations, aliases; priority, enabled, read-only |
//! | [`FlatView`] | what the guest sees: sorted, disjoint, merged; one view shares with the next what stays |
//! | [`Bus`] | reads and writes of a view by a CPU or device; [`MmioOps`] and [`IommuOps`] answer them |
//! | [`AddressSpace`], [`ViewReader`] | transactions, snapshots without locks (feature `host`) |
//! | [`MemoryListener`] | hears what changes: ranges, dirty logging, eventfds, coalesced writes |
//! | [`RamBlock`], [`RamOptions`] | memory this process mapped: anonymous, memfd or file, of small or huge pages (feature `host`) |
//! | [`Protection`], [`RamBlock::migrate`] | what else happens to memory under a guest: `mprotect`, other frames (feature `host`) |
//! | [`DirtyBitmap`], [`DirtyClients`] | which pages were written, for each of those who ask |
//! | [`RamDiscardManager`] | which parts of a block are populated (feature `host`) |
//! | [`FlatView`], [`DmaView`] with vm-memory's traits | memory for loaders, and for devices (feature `host`) |
//! | [`mtree`] | the text of QEMU's `info mtree`, both ways |
//!
//! Without the default feature `host` the crate is `no_std` + alloc: addresses, tree, view and devices, over
//! blocks that somebody else has mapped.
#![cfg_attr(not(any(feature = "host", test)), no_std)]

extern crate alloc;

mod access;
mod addr;
mod announce;
mod error;
mod event;
mod flat;
#[cfg(feature = "host")]
mod guest_memory;
mod iommu;
mod listener;
mod mmio;
pub mod mtree;
mod ram;
mod region;
#[cfg(feature = "host")]
mod space;
mod tree;

pub use access::{AccessError, Bus, Unassigned};
#[cfg(feature = "host")]
pub use access::{BOUNCE_BYTES, BounceBudget, MapError, MappedMemory};
pub use addr::{AddrRange, Address, Gpa, Gva, Hpa, Hva, PageSize};
pub use error::MemoryError;
pub use event::{Coalesced, Eventfd, FlatEventfd};
pub use flat::{FlatRange, FlatView};
#[cfg(feature = "host")]
pub use guest_memory::{DirtySlice, DmaView};
pub use iommu::{Access, IommuEntry, IommuOps};
#[cfg(feature = "host")]
pub use iommu::{IommuNotifier, IommuNotifiers};
pub use listener::{DirtySync, MemoryListener, Refusal};
pub use mmio::{AccessRules, AccessSizes, Endianness, MAX_NESTING, MemTxAttrs, MemTxError, MmioOps, Reentry};
#[cfg(feature = "host")]
pub use ram::{
    Backing, DiscardClaim, DiscardClaims, DiscardSourceId, HeldClaim, NumaPolicy, Pages, Protection,
    RamDiscardListener, RamDiscardManager, RamOptions, RamPage, Word,
};
pub use ram::{DirtyBitmap, DirtyClients, DirtySnapshot, RamBlock};
pub use region::{Region, RegionId, RegionKind};
#[cfg(feature = "host")]
pub use space::{AddressSpace, ViewReader};
pub use tree::RegionTree;

/// The program of `README.md`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
