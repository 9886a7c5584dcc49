//! A region: one node of the tree, as plain data.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::RamBlock;

/// Names a region of one [`RegionTree`](crate::RegionTree). An id is never given out twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId(pub(crate) u32);

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region #{}", self.0)
    }
}

/// The callbacks of a device (QEMU's `MemoryRegionOps`). Offsets count from the region's start.
pub trait MmioOps: Send + Sync {
    /// Reads `size` bytes (1, 2, 4 or 8), little endian in the low bytes of the result.
    fn read(&self, offset: u64, size: u8) -> u64;
    /// Writes the low `size` bytes of `value`.
    fn write(&self, offset: u64, size: u8, value: u64);
}

/// What a region is (QEMU's `MemoryRegion` flavours).
#[derive(Clone)]
pub enum RegionKind {
    /// Only shows its children.
    Container,
    /// Memory; ROM is memory with [`Region::readonly`] set.
    Ram(Arc<RamBlock>),
    /// A device.
    Mmio(Arc<dyn MmioOps>),
    /// Shows the part of `target` that starts `offset` bytes into it.
    Alias {
        /// The region shown.
        target: RegionId,
        /// Where in the target this alias begins.
        offset: u64,
    },
}

impl RegionKind {
    /// Whether a look-up ends here (rule R1): memory and devices, not containers and aliases.
    pub fn terminates(&self) -> bool {
        matches!(self, Self::Ram(_) | Self::Mmio(_))
    }

    /// The memory behind a RAM region.
    pub fn ram(&self) -> Option<&Arc<RamBlock>> {
        match self {
            Self::Ram(block) => Some(block),
            _ => None,
        }
    }
}

impl fmt::Debug for RegionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container => f.write_str("Container"),
            Self::Ram(block) => f.debug_tuple("Ram").field(block).finish(),
            Self::Mmio(_) => f.write_str("Mmio"),
            Self::Alias { target, offset } => write!(f, "Alias({target} @{offset:#x})"),
        }
    }
}

/// One region of the tree. Read it by [`RegionTree::get`](crate::RegionTree::get); the tree changes it.
#[derive(Clone, Debug)]
pub struct Region {
    pub(crate) name: Arc<str>,
    pub(crate) kind: RegionKind,
    pub(crate) size: u128,
    pub(crate) offset: u64,
    pub(crate) priority: i32,
    pub(crate) enabled: bool,
    pub(crate) readonly: bool,
    pub(crate) container: Option<RegionId>,
    /// In the order in which they are seen: highest priority first, the newest first among equals.
    pub(crate) subregions: Vec<RegionId>,
}

impl Region {
    /// The name given at creation; not unique.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What it is.
    pub fn kind(&self) -> &RegionKind {
        &self.kind
    }

    /// Bytes, 1 to 2^64 (rule R4).
    pub fn size(&self) -> u128 {
        self.size
    }

    /// Where it sits in its container, in bytes from the container's start.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Compared between siblings only (rule R9).
    pub fn priority(&self) -> i32 {
        self.priority
    }

    /// A disabled region hides its whole subtree (rule R12).
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// A guest or device write changes nothing; inherited by everything below (rule R13).
    pub fn readonly(&self) -> bool {
        self.readonly
    }

    /// The region it sits in.
    pub fn container(&self) -> Option<RegionId> {
        self.container
    }

    /// Its children, in the order in which they are seen.
    pub fn subregions(&self) -> &[RegionId] {
        &self.subregions
    }
}
