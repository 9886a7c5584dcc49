//! Guest memory as QEMU describes it: a tree of regions, rendered to a flat view, backed by RAM blocks.
//!
//! Usable alone, without KVM:
//!
//! ```
//! use memory_model::{AddressSpace, Gpa, MemoryError, RamBlock, RegionTree};
//!
//! let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?);
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
//! | [`RegionTree`] | containers, RAM, ROM, devices, aliases; priority, enabled, read-only |
//! | [`FlatView`] | what the guest sees: sorted, disjoint, merged |
//! | [`AddressSpace`] | transactions, snapshots, listeners (feature `host`) |
//! | [`RamBlock`] | memory this process mapped: anonymous or memfd (feature `host`) |
//!
//! Without the default feature `host` the crate is `no_std` + alloc: addresses, tree and view, over blocks
//! that somebody else has mapped.
//!
//! Known holes: ROM devices, IOMMUs, reservations, MMIO access sizes, dirty logging, file and huge-page
//! blocks are not here yet; an update renders the whole tree.
#![cfg_attr(not(any(feature = "host", test)), no_std)]

extern crate alloc;

mod addr;
mod error;
mod flat;
#[cfg(feature = "host")]
mod guest_memory;
mod listener;
mod ram;
mod region;
#[cfg(feature = "host")]
mod space;
mod tree;

pub use addr::{AddrRange, Address, Gpa, Gva, Hpa, Hva, PageSize};
pub use error::MemoryError;
pub use flat::{FlatRange, FlatView};
pub use listener::{MemoryListener, Refusal};
pub use ram::RamBlock;
pub use region::{MmioOps, Region, RegionId, RegionKind};
#[cfg(feature = "host")]
pub use space::AddressSpace;
pub use tree::RegionTree;
