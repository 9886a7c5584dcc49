//! What a RAM block is made of.

use std::path::PathBuf;
use std::vec::Vec;

use rustix::fd::OwnedFd;

use crate::PageSize;

/// What a RAM block is made of; the default is private anonymous memory in the host's usual pages.
///
/// ```
/// use memory_model::{Backing, Pages, RamBlock, RamOptions};
/// let options = RamOptions { backing: Backing::Memfd, shared: true, pages: Pages::Thp, ..Default::default() };
/// let block = RamBlock::create("pc.ram", 0x40_0000, options)?;
/// assert_eq!(block.page_size().bytes(), 0x1000);
/// # Ok::<(), memory_model::MemoryError>(())
/// ```
#[derive(Debug, Default)]
pub struct RamOptions {
    /// What stands behind the memory.
    pub backing: Backing,
    /// Its pages.
    pub pages: Pages,
    /// Whether writes reach the backing, and so other processes, or a private copy.
    pub shared: bool,
    /// On which NUMA nodes its pages lie.
    pub numa: NumaPolicy,
    /// The size to which the block can grow (rule R42); without it the size is fixed.
    pub max_size: Option<u64>,
    /// A `guest_memfd` that KVM made for the private half of a confidential guest's memory. The block owns it
    /// from here on.
    pub guest_memfd: Option<OwnedFd>,
}

/// What stands behind a block's memory.
#[derive(Debug, Default)]
pub enum Backing {
    /// Nothing: memory of this process.
    #[default]
    Anonymous,
    /// A memory file without a name in the file system.
    Memfd,
    /// A file, opened for reading and writing, made if it is not there, and made longer if it is too short. Its file
    /// system decides about the page size (2 MiB or 1 GiB on hugetlbfs).
    Path {
        /// The file's name.
        path: PathBuf,
        /// Where in the file the block begins, in bytes.
        offset: u64,
    },
    /// The same for a file that is open already.
    File {
        /// The open file.
        file: OwnedFd,
        /// Where in the file the block begins, in bytes.
        offset: u64,
    },
}

/// The host's pages behind a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Pages {
    /// As the host is set: 4 KiB, or transparent huge pages if it gives them unasked.
    #[default]
    Usual,
    /// 4 KiB pages only (`MADV_NOHUGEPAGE`).
    Small,
    /// Transparent huge pages, where the host has them (`MADV_HUGEPAGE`).
    Thp,
    /// Pages of 2 MiB from the host's pool.
    Huge2M,
    /// Pages of 1 GiB from the host's pool.
    Huge1G,
}

impl Pages {
    /// The size of the pool's pages; `None` for pages that need no pool.
    pub fn huge(self) -> Option<PageSize> {
        match self {
            Self::Usual | Self::Small | Self::Thp => None,
            Self::Huge2M => Some(PageSize::Size2M),
            Self::Huge1G => Some(PageSize::Size1G),
        }
    }
}

/// On which of the host's NUMA nodes pages are allocated (`mbind(2)`).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum NumaPolicy {
    /// As the process does.
    #[default]
    Inherit,
    /// On these nodes only.
    Bind(Vec<u32>),
    /// On this node while it has room.
    Preferred(u32),
    /// On these nodes in turn.
    Interleave(Vec<u32>),
}
