//! A region: one node of the tree, as plain data.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::{Coalesced, DirtyClients, Eventfd, IommuOps, MmioOps, RamBlock};

/// Names a region of one [`RegionTree`](crate::RegionTree). An id is never given out twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RegionId {
    pub(crate) index: u32,
    /// Tells the regions apart that lived at this index one after the other.
    pub(crate) generation: u32,
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            0 => write!(f, "region #{}", self.index),
            later => write!(f, "region #{}.{later}", self.index),
        }
    }
}

/// What a region is (QEMU's `MemoryRegion` flavours).
#[derive(Clone)]
pub enum RegionKind {
    /// Only shows its children.
    Container,
    /// Memory; ROM is memory with [`Region::readonly`] set.
    Ram(Arc<RamBlock>),
    /// Memory whose writes reach a device, and whose reads do so too while [`Region::romd`] is off (rule R7).
    RomDevice {
        /// What direct reads see.
        block: Arc<RamBlock>,
        /// Who gets the rest.
        ops: Arc<dyn MmioOps>,
    },
    /// Memory of a real device: a guest can map it, but the VMM's own access is of exact width (rule R8).
    RamDevice(Arc<RamBlock>),
    /// A device.
    Mmio(Arc<dyn MmioOps>),
    /// Translates what reaches it, and sends it on elsewhere.
    Iommu(Arc<dyn IommuOps>),
    /// Hides what is below it, and is nothing itself (rule R5).
    Reservation,
    /// Shows the part of `target` that starts `offset` bytes into it.
    Alias {
        /// The region shown.
        target: RegionId,
        /// Where in the target this alias begins.
        offset: u64,
    },
}

impl RegionKind {
    /// Whether a look-up ends here (rule R1): everything but containers and aliases.
    pub fn terminates(&self) -> bool {
        !matches!(self, Self::Container | Self::Alias { .. })
    }

    /// The memory that a guest can map: that of RAM, ROM, a ROM device or a RAM device.
    pub fn ram(&self) -> Option<&Arc<RamBlock>> {
        match self {
            Self::Ram(block) | Self::RamDevice(block) | Self::RomDevice { block, .. } => Some(block),
            _ => None,
        }
    }

    /// What an alias shows.
    pub fn alias_target(&self) -> Option<RegionId> {
        match self {
            Self::Alias { target, .. } => Some(*target),
            _ => None,
        }
    }

    /// The clients that log writes here while dirty logging is on for everything (rule R41).
    pub(crate) fn logged_globally(&self) -> DirtyClients {
        match self {
            Self::Ram(_) | Self::RomDevice { .. } | Self::Iommu(_) => DirtyClients::MIGRATION,
            _ => DirtyClients::empty(),
        }
    }
}

impl fmt::Debug for RegionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Container => f.write_str("Container"),
            Self::Ram(block) => f.debug_tuple("Ram").field(block).finish(),
            Self::RomDevice { block, .. } => f.debug_tuple("RomDevice").field(block).finish(),
            Self::RamDevice(block) => f.debug_tuple("RamDevice").field(block).finish(),
            Self::Mmio(_) => f.write_str("Mmio"),
            Self::Iommu(_) => f.write_str("Iommu"),
            Self::Reservation => f.write_str("Reservation"),
            Self::Alias { target, offset } => write!(f, "Alias({target} @{offset:#x})"),
        }
    }
}

/// What the setters of the tree change.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Attributes {
    pub(crate) size: u128,
    pub(crate) offset: u64,
    pub(crate) priority: i32,
    pub(crate) enabled: bool,
    pub(crate) readonly: bool,
    pub(crate) nonvolatile: bool,
    pub(crate) unmergeable: bool,
    pub(crate) romd: bool,
    pub(crate) dirty_log: DirtyClients,
}

/// A child, with what a container has to know of it in order to pass by quickly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    pub(crate) id: RegionId,
    pub(crate) priority: i32,
    /// Numbers the placings of the whole tree, so that the newest of equals is known (rule R10).
    pub(crate) placed: u64,
    /// First and last byte, counted from the container's start; what passes 2^64 is cut off, as no
    /// container reaches further.
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// One region of the tree. Read it by [`RegionTree::get`](crate::RegionTree::get); the tree changes it.
#[derive(Clone, Debug)]
pub struct Region {
    pub(crate) name: Arc<str>,
    pub(crate) kind: RegionKind,
    pub(crate) attributes: Attributes,
    pub(crate) container: Option<RegionId>,
    /// [`Child::placed`] of this region in its container.
    pub(crate) placed: u64,
    /// In the order in which they are seen: highest priority first, the newest first among equals.
    pub(crate) children: Vec<Child>,
    /// The aliases that show this region.
    pub(crate) aliases: Vec<RegionId>,
    /// How many address spaces have this region for their root.
    pub(crate) roots: u32,
    pub(crate) eventfds: Vec<Eventfd>,
    pub(crate) coalesced: Vec<Coalesced>,
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
        self.attributes.size
    }

    /// Where it sits in its container, in bytes from the container's start.
    pub fn offset(&self) -> u64 {
        self.attributes.offset
    }

    /// Compared between siblings only (rule R9).
    pub fn priority(&self) -> i32 {
        self.attributes.priority
    }

    /// A disabled region hides its whole subtree (rule R12).
    pub fn enabled(&self) -> bool {
        self.attributes.enabled
    }

    /// A guest or device write changes nothing; inherited by everything below (rule R13).
    pub fn readonly(&self) -> bool {
        self.attributes.readonly
    }

    /// Keeps its bytes over a reset; inherited by everything below (rule R13).
    pub fn nonvolatile(&self) -> bool {
        self.attributes.nonvolatile
    }

    /// Never joined with a neighbour in the view; inherited by everything below (rules R13, R17).
    pub fn unmergeable(&self) -> bool {
        self.attributes.unmergeable
    }

    /// Whether reads of a ROM device are direct (rule R7). Without meaning for other kinds.
    pub fn romd(&self) -> bool {
        self.attributes.romd
    }

    /// Who wants to know of writes to this region, apart from what is logged everywhere.
    pub fn dirty_log(&self) -> DirtyClients {
        self.attributes.dirty_log
    }

    /// The region it sits in.
    pub fn container(&self) -> Option<RegionId> {
        self.container
    }

    /// Its children, in the order in which they are seen.
    pub fn subregions(&self) -> impl DoubleEndedIterator<Item = RegionId> + ExactSizeIterator {
        self.children.iter().map(|child| child.id)
    }

    /// The aliases that show it.
    pub fn aliases(&self) -> &[RegionId] {
        &self.aliases
    }

    /// The eventfds on it, sorted.
    pub fn eventfds(&self) -> &[Eventfd] {
        &self.eventfds
    }

    /// The parts whose writes may be collected and delivered later.
    pub fn coalesced(&self) -> &[Coalesced] {
        &self.coalesced
    }

    /// The last byte, counted from the region's start.
    pub(crate) fn last(&self) -> u64 {
        (self.attributes.size - 1) as u64
    }

    /// What the container keeps of this region, once placed.
    pub(crate) fn as_child(&self, id: RegionId) -> Child {
        let Attributes { offset, priority, .. } = self.attributes;
        Child { id, priority, placed: self.placed, first: offset, last: offset.saturating_add(self.last()) }
    }
}
