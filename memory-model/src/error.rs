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
    /// Only the reads of a ROM device can be made direct.
    #[error("region {region} is not a ROM device")]
    NotRomDevice {
        /// The region's name.
        region: String,
    },
    /// Only an alias shows another region.
    #[error("region {region} is not an alias")]
    NotAlias {
        /// The region's name.
        region: String,
    },
    /// A part reaches outside its region.
    #[error("region {region}: no {len:#x} bytes at offset {offset:#x}")]
    OutOfRegion {
        /// The region's name.
        region: String,
        /// Where the part starts.
        offset: u64,
        /// How long it is.
        len: u64,
    },
    /// An eventfd reaches outside its region, has an odd width, is there already, or is not there.
    #[error("region {region}: an eventfd of {size} bytes at offset {offset:#x} is {problem}")]
    BadEventfd {
        /// The region's name.
        region: String,
        /// Where the eventfd is.
        offset: u64,
        /// The width of the write.
        size: u8,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Aliases show regions in more places than can be rendered.
    #[error("the view of {root} is too complex: more than {visits} regions would have to be visited")]
    TooManyAliases {
        /// The root's name.
        root: String,
        /// The limit.
        visits: usize,
    },
    /// The region is still in use by others.
    #[error("region {region} cannot be destroyed: {user} still refers to it")]
    InUse {
        /// The region's name.
        region: String,
        /// The region that holds it or is an alias of it.
        user: String,
    },
    /// The kernel refused something for a block.
    #[cfg(feature = "host")]
    #[error("RAM block {block} of {size:#x} bytes in {page} pages: {action} failed")]
    Host {
        /// The block's name.
        block: String,
        /// Its size in bytes.
        size: u64,
        /// The size of the pages it was to be made of.
        page: crate::PageSize,
        /// What was asked of the kernel.
        action: &'static str,
        /// The kernel's answer.
        source: rustix::io::Errno,
    },
    /// The host has too few free huge pages.
    #[cfg(feature = "host")]
    #[error(
        "RAM block {block} of {size:#x} bytes: {needed} free pages of {page} are needed, there are {free}; \
         write a larger number to {setting}"
    )]
    NoHugePages {
        /// The block's name.
        block: String,
        /// Its size in bytes.
        size: u64,
        /// The page size.
        page: crate::PageSize,
        /// How many such pages it takes.
        needed: u64,
        /// How many are free and not promised to others.
        free: u64,
        /// The file that sets how many there are.
        setting: String,
        /// The kernel's answer.
        source: rustix::io::Errno,
    },
    /// Options of a block that do not go together.
    #[error("RAM block {block}: {problem}")]
    RamOptions {
        /// The block's name.
        block: String,
        /// Which ones, and why not.
        problem: &'static str,
    },
    /// A block cannot grow past the size it was made for.
    #[error("RAM block {block}: {size:#x} bytes are more than its {max:#x}")]
    BlockFull {
        /// The block's name.
        block: String,
        /// The size asked for.
        size: u64,
        /// The most it can have.
        max: u64,
    },
    /// Memory is populated and discarded in whole units.
    #[error("RAM block {block}: {start:#x}..{end:#x} is not whole units of {unit:#x} bytes inside the block")]
    DiscardRange {
        /// The block's name.
        block: String,
        /// Offset of the first byte.
        start: u64,
        /// Offset behind the last byte.
        end: u64,
        /// The unit: the page size, or the granularity of a source.
        unit: u64,
    },
    /// The block has no such source of discards.
    #[error("RAM block {block} has no discard source #{source_id}")]
    NoDiscardSource {
        /// The block's name.
        block: String,
        /// The source's number.
        source_id: u32,
    },
    /// A listener refused newly populated memory; those told before it were told that it is gone again.
    #[error("RAM block {block}: {listener} refused the memory at {start:#x}..{end:#x}")]
    Populate {
        /// The block's name.
        block: String,
        /// The listener's name.
        listener: String,
        /// Offset of the first byte.
        start: u64,
        /// Offset behind the last byte.
        end: u64,
        /// Its reason.
        source: Box<dyn core::error::Error + Send + Sync>,
    },
    /// Some need discards to work and others need that there are none (rule R43).
    #[error("busy: {wanted} is not possible while there is {held}")]
    DiscardBusy {
        /// What was asked for.
        wanted: &'static str,
        /// What somebody else has and excludes it.
        held: &'static str,
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
    /// An update inside an update of the same tree, by an edit or a listener: it would wait for itself.
    #[cfg(feature = "host")]
    #[error("{space}: an update inside an update")]
    NestedUpdate {
        /// The address space that was asked.
        space: String,
    },
    /// A listener refused to log everything; the listeners asked before it were stopped again (rule R31).
    #[error("{listener} refused to log all memory")]
    GlobalLog {
        /// The listener's name.
        listener: String,
        /// Its reason.
        source: Box<dyn core::error::Error + Send + Sync>,
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
