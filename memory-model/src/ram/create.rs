//! Making a block from its options.

use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;

use super::mapping::{Mapping, Source};
use super::options::{Backing, Pages, RamOptions};
use super::{RamBlock, check_size};
use crate::{MemoryError, PageSize};

/// The magic number of hugetlbfs in `statfs(2)`.
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

impl RamBlock {
    /// Memory of `size` bytes (whole pages) as the options say. What the kernel refuses is an error that
    /// names the block, its size, the page size and the cause.
    pub fn create(name: &str, size: u64, options: RamOptions) -> Result<Arc<Self>, MemoryError> {
        let max_size = options.max_size.unwrap_or(size);
        if size > max_size {
            return Err(MemoryError::BlockFull { block: name.to_string(), size, max: max_size });
        }
        let mut maker = Maker { name, size: max_size, page: PageSize::Size4K };
        let source = maker.source(options.backing, options.pages.huge())?;
        for bytes in [size, max_size] {
            check_size(name, bytes, maker.page)?;
        }
        maker.fit(&source)?;
        let length = usize::try_from(max_size).map_err(|_| maker.refused("mapping")(Errno::NOMEM))?;
        let mut mapping =
            Mapping::new(length, maker.page, options.shared, source).map_err(maker.refused("mapping"))?;
        match options.pages {
            Pages::Small => mapping.advise_thp(false).map_err(maker.refused("forbidding huge pages"))?,
            Pages::Thp => mapping.advise_thp(true).map_err(maker.refused("asking for huge pages"))?,
            Pages::Usual | Pages::Huge2M | Pages::Huge1G => {}
        }
        mapping.bind(&options.numa).map_err(maker.refused("binding to NUMA nodes"))?;
        Ok(Arc::new(Self::mapped_by(name, size, maker.page, mapping, options.guest_memfd)))
    }
}

/// What is known of a block in the making.
struct Maker<'a> {
    name: &'a str,
    size: u64,
    page: PageSize,
}

impl Maker<'_> {
    /// Opens what stands behind the memory, and learns its page size.
    fn source(&mut self, backing: Backing, huge: Option<PageSize>) -> Result<Source, MemoryError> {
        let (file, offset) = match backing {
            Backing::Anonymous => {
                self.page = huge.unwrap_or(self.page);
                return Ok(Source::Anonymous);
            }
            Backing::Memfd => {
                self.page = huge.unwrap_or(self.page);
                let flags = MemfdFlags::CLOEXEC | huge.map_or(MemfdFlags::empty(), huge_memfd);
                let file =
                    rustix::fs::memfd_create(self.name, flags).map_err(self.refused("creating a memfd"))?;
                return Ok(Source::Memfd(file));
            }
            Backing::Path { path, offset } => {
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
                let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(self.refused("opening the file"))?;
                (file, offset)
            }
            Backing::File { file, offset } => (file, offset),
        };
        let system =
            rustix::fs::fstatfs(&file).map_err(self.refused("reading the file system's page size"))?;
        if system.f_type as u64 == HUGETLBFS_MAGIC {
            let known = PageSize::ALL.into_iter().find(|size| size.bytes() == system.f_bsize as u64);
            self.page = known.ok_or_else(|| self.bad("the file system has pages of a size unknown here"))?;
        }
        if huge.is_some_and(|huge| huge != self.page) {
            return Err(self.bad("the file system decides about the page size, and it is another one"));
        }
        if !offset.is_multiple_of(self.page.bytes()) {
            return Err(self.bad("the offset in the file is not whole pages"));
        }
        Ok(Source::File { file, offset })
    }

    /// Makes the file long enough.
    fn fit(&self, source: &Source) -> Result<(), MemoryError> {
        let (file, offset): (&OwnedFd, u64) = match source {
            Source::Anonymous => return Ok(()),
            Source::Memfd(file) => (file, 0),
            Source::File { file, offset } => (file, *offset),
        };
        let length =
            rustix::fs::fstat(file).map_err(self.refused("reading the file's length"))?.st_size as u64;
        let end =
            offset.checked_add(self.size).ok_or_else(|| self.bad("it reaches past the longest file"))?;
        if length >= end {
            return Ok(());
        }
        rustix::fs::ftruncate(file, end).map_err(self.refused("making the file longer"))
    }

    /// The kernel's answer as this crate's error.
    fn refused(&self, action: &'static str) -> impl Fn(Errno) -> MemoryError {
        refusal(self.name, self.size, self.page, action)
    }

    fn bad(&self, problem: &'static str) -> MemoryError {
        MemoryError::RamOptions { block: self.name.to_string(), problem }
    }
}

/// Turns what the kernel answered into an error. Out of memory means, for huge pages, that the pool is too small.
pub(super) fn refusal(
    name: &str,
    size: u64,
    page: PageSize,
    action: &'static str,
) -> impl Fn(Errno) -> MemoryError + use<> {
    let block = name.to_string();
    move |source| {
        let block = block.clone();
        let needed = size / page.bytes();
        match source {
            // A page fault that finds no page in the pool is a bus error, which `madvise` reports as a bad address.
            Errno::NOMEM | Errno::FAULT if page != PageSize::Size4K => {
                let pool = pool(page);
                let free = free_pages(&pool);
                MemoryError::NoHugePages {
                    block,
                    size,
                    page,
                    needed,
                    free,
                    setting: format!("{pool}/nr_hugepages"),
                    source,
                }
            }
            source => MemoryError::Host { block, size, page, action, source },
        }
    }
}

/// The folder of a pool's counters.
fn pool(page: PageSize) -> alloc::string::String {
    format!("/sys/kernel/mm/hugepages/hugepages-{}kB", page.bytes() >> 10)
}

/// Free pages that nobody has reserved; none if the host has no such pool.
fn free_pages(pool: &str) -> u64 {
    let counter = |name| {
        let text = std::fs::read_to_string(format!("{pool}/{name}")).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0)
    };
    counter("free_hugepages").saturating_sub(counter("resv_hugepages"))
}

fn huge_memfd(page: PageSize) -> MemfdFlags {
    MemfdFlags::HUGETLB
        | match page {
            // Hosts have no pages of 4 MiB.
            PageSize::Size4K | PageSize::Size4M => MemfdFlags::empty(),
            PageSize::Size2M => MemfdFlags::HUGE_2MB,
            PageSize::Size1G => MemfdFlags::HUGE_1GB,
        }
}

/// Gives a part of a file back to its file system.
pub(super) fn punch_hole(file: impl AsFd, offset: u64, len: u64) -> rustix::io::Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}
