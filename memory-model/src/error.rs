//! Everything that can go wrong in this crate, said with names and hex ranges.

use alloc::boxed::Box;
use alloc::string::String;

use crate::RegionId;

/// Why an edit of the tree, a RAM block or an update was refused. The old state stays in force.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The id names no region of this tree (it was removed, or belongs to another tree).
    #[error("{0} is not a region of this tree")]
    NoSuchRegion(RegionId),
    /// A region's size must be 1 to 2^64 bytes.
    #[error("region {region}: a size of {size:#x} bytes is not within 1 to 2^64")]
    BadSize {
        /// The region's name.
        region: String,
        /// The size asked for.
        size: u128,
    },
    /// A region already sits in a container.
    #[error("region {region} is already inside {container}")]
    AlreadyPlaced {
        /// The region's name.
        region: String,
        /// The container's name.
        container: String,
    },
    /// A region is in no container.
    #[error("region {region} is not inside any container")]
    NotPlaced {
        /// The region's name.
        region: String,
    },
    /// An alias shows its target, it has no room for children.
    #[error("region {alias} is an alias, it cannot hold {region}")]
    ChildOfAlias {
        /// The alias.
        alias: String,
        /// The child it was to hold.
        region: String,
    },
    /// The edit would make a region show itself.
    #[error("region {region} inside {container} would make a cycle")]
    Cycle {
        /// The region to be placed.
        region: String,
        /// Where it was to be placed.
        container: String,
    },
    /// The region is still in use by others.
    #[error("region {region} cannot be destroyed: {user} still refers to it")]
    InUse {
        /// The region's name.
        region: String,
        /// The region that holds it or is an alias of it.
        user: String,
    },
    /// The kernel refused memory for a block.
    #[cfg(feature = "host")]
    #[error("RAM block {block} of {size:#x} bytes: {action} failed")]
    Host {
        /// The block's name.
        block: String,
        /// Its size in bytes.
        size: u64,
        /// What was asked of the kernel.
        action: &'static str,
        /// The kernel's answer.
        source: rustix::io::Errno,
    },
    /// A block's size must be whole pages.
    #[error("RAM block {block}: a size of {size:#x} bytes is not a positive multiple of {page:#x}")]
    BlockSize {
        /// The block's name.
        block: String,
        /// The size asked for.
        size: u64,
        /// The page size it must be a multiple of.
        page: u64,
    },
    /// An access reaches outside its block.
    #[error("RAM block {block} of {size:#x} bytes: no {len:#x} bytes at offset {offset:#x}")]
    OutOfBlock {
        /// The block's name.
        block: String,
        /// Its size.
        size: u64,
        /// Where the access starts.
        offset: u64,
        /// How long it is.
        len: u64,
    },
    /// The block describes memory that this process has not mapped.
    #[error("RAM block {block} is not mapped by this process")]
    NotMapped {
        /// The block's name.
        block: String,
    },
    /// A listener refused a new view; the listeners told before it were told the way back.
    #[error("{listener} refused the new view")]
    Listener {
        /// The listener's name.
        listener: String,
        /// Its reason.
        source: Box<dyn core::error::Error + Send + Sync>,
    },
}
