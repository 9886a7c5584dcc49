//! Page-table formats, walkers, mapper and the two-dimensional MMU of a hypervisor.
#![no_std]

extern crate alloc;

mod access;
mod error;
mod fault;
mod format;
mod mapper;
mod mappings;
pub mod mmu;
mod nested;
mod phys;
mod walk;

pub use access::{Access, Controls, Rights};
pub use error::Error;
pub use fault::{Fault, PageFaultCode, Qualification};
pub use format::{
    Attributes, Caching, Cr3, Entry, EptCaps, Eptp, Format, Ia32e, Kind, Levels, MaxPhyAddr, MemoryType,
    Misconfiguration, Role,
};
pub use mapper::Mapper;
pub use mappings::{Mapping, Mappings, mappings};
pub use nested::{NestedFault, NestedLeaf, NestedWalk, nested_walk};
pub use phys::{FrameAllocator, MemoryError, PhysMemory, SparseMemory};
pub use walk::{Flags, Leaf, Paging, Path, Step, Walk, translate, walk};
