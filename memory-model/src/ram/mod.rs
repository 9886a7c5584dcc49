//! RAM blocks: the host memory behind RAM regions (QEMU's `RAMBlock`), with its dirty bits and discards.

mod dirty;

#[cfg(feature = "host")]
mod access;
#[cfg(feature = "host")]
mod advice;
#[cfg(feature = "host")]
mod create;
#[cfg(feature = "host")]
mod discard;
#[cfg(feature = "host")]
mod mapping;
#[cfg(feature = "host")]
mod options;
#[cfg(feature = "host")]
mod page;
#[cfg(feature = "host")]
mod populate;
#[cfg(feature = "host")]
mod protect;
#[cfg(feature = "host")]
mod resize;

use alloc::string::ToString;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

pub use dirty::{DirtyBitmap, DirtyClients, DirtySnapshot};
#[cfg(feature = "host")]
pub use discard::{
    DiscardClaim, DiscardClaims, DiscardSourceId, HeldClaim, RamDiscardListener, RamDiscardManager,
};
#[cfg(feature = "host")]
pub use options::{Backing, NumaPolicy, Pages, RamOptions};
#[cfg(feature = "host")]
pub use page::{RamPage, Word};
#[cfg(feature = "host")]
pub use protect::Protection;

use crate::{Hva, MemoryError, PageSize};

/// A stretch of host memory with a name. The mapping goes when the last `Arc` goes: whoever hands its
/// address to somebody else (a memory slot, say) holds one as long as the address is in use.
pub struct RamBlock {
    name: Arc<str>,
    hva: Hva,
    /// Changes only by [`RamBlock::resize`].
    size: AtomicU64,
    max_size: u64,
    page: PageSize,
    #[cfg(feature = "host")]
    host: HostSide,
}

/// What a block has where there is an operating system.
#[cfg(feature = "host")]
struct HostSide {
    mapping: Option<mapping::Mapping>,
    guest_memfd: Option<rustix::fd::OwnedFd>,
    dirty: dirty::DirtyMemory,
    discards: std::sync::Mutex<discard::Discards>,
    resizes: std::sync::Mutex<resize::Listeners>,
}

impl RamBlock {
    /// Describes memory that somebody else mapped (a hypervisor, another process). It can be placed,
    /// looked up and translated; its bytes cannot be read or written through this block.
    pub fn foreign(name: &str, hva: Hva, size: u64) -> Result<Arc<Self>, MemoryError> {
        check_size(name, size, PageSize::Size4K)?;
        Ok(Arc::new(Self {
            name: name.into(),
            hva,
            size: AtomicU64::new(size),
            max_size: size,
            page: PageSize::Size4K,
            #[cfg(feature = "host")]
            host: HostSide::new(size, None, None),
        }))
    }

    /// The name given at creation.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Where it starts in this process.
    pub fn hva(&self) -> Hva {
        self.hva
    }

    /// Its size in bytes: whole pages. A resizeable block can change it.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// The size to which it can grow (rule R42): that much address space is its own.
    pub fn max_size(&self) -> u64 {
        self.max_size
    }

    /// The size of the pages it is made of. Transparent huge pages are made of small ones.
    pub fn page_size(&self) -> PageSize {
        self.page
    }

    /// Bytes from the block's start to `hva`, if `hva` lies inside.
    pub fn offset_of(&self, hva: Hva) -> Option<u64> {
        hva.checked_sub(self.hva).filter(|&offset| offset < self.size())
    }
}

#[cfg(feature = "host")]
impl RamBlock {
    /// Private anonymous memory, zero until touched.
    pub fn anonymous(name: &str, size: u64) -> Result<Arc<Self>, MemoryError> {
        Self::create(name, size, RamOptions::default())
    }

    /// Shared memory behind a memfd, so that other processes can map it too.
    pub fn memfd(name: &str, size: u64) -> Result<Arc<Self>, MemoryError> {
        Self::create(name, size, RamOptions { backing: Backing::Memfd, shared: true, ..Default::default() })
    }

    fn mapped_by(
        name: &str,
        size: u64,
        page: PageSize,
        mapping: mapping::Mapping,
        guest_memfd: Option<rustix::fd::OwnedFd>,
    ) -> Self {
        let (hva, max_size) = (mapping.hva(), mapping.length as u64);
        let host = HostSide::new(max_size, Some(mapping), guest_memfd);
        Self { name: name.into(), hva, size: AtomicU64::new(size), max_size, page, host }
    }

    /// The memfd or file behind the block. The block starts [`file_offset`](Self::file_offset) bytes into it.
    pub fn fd(&self) -> Option<rustix::fd::BorrowedFd<'_>> {
        Some(self.host.mapping.as_ref()?.file()?.0)
    }

    /// Where in its file the block begins, in bytes; 0 without a file.
    pub fn file_offset(&self) -> u64 {
        self.host.mapping.as_ref().and_then(mapping::Mapping::file).map_or(0, |(_, offset)| offset)
    }

    /// Whether writes reach the file and other processes.
    pub fn is_shared(&self) -> bool {
        self.host.mapping.as_ref().is_some_and(|mapping| mapping.shared)
    }

    /// Whether transparent huge pages were asked for.
    pub fn wants_thp(&self) -> bool {
        self.host.mapping.as_ref().is_some_and(|mapping| mapping.thp)
    }

    /// The `guest_memfd` given at creation, which holds a confidential guest's private memory.
    pub fn guest_memfd(&self) -> Option<rustix::fd::BorrowedFd<'_>> {
        self.host.guest_memfd.as_ref().map(rustix::fd::AsFd::as_fd)
    }

    /// Notes for `clients` that `len` bytes at `offset` were written. Whoever writes by
    /// [`RamBlock::write`] or through an address decides who is told, so neither does it by itself.
    #[inline]
    pub fn mark_dirty(&self, offset: u64, len: u64, clients: DirtyClients) {
        if !clients.is_empty() {
            self.host.dirty.mark(offset, len, clients);
        }
    }

    /// Whether one of `clients` has a page dirty that `len` bytes at `offset` touch.
    pub fn is_dirty(&self, offset: u64, len: u64, clients: DirtyClients) -> bool {
        self.host.dirty.is_dirty(offset, len, clients)
    }

    /// Takes the dirty pages that `part` (offsets) touches from `client`, and leaves the other clients theirs
    /// (rule R41).
    pub fn snapshot_and_clear_dirty(
        &self,
        part: core::ops::Range<u64>,
        client: DirtyClients,
    ) -> DirtySnapshot {
        self.host.dirty.snapshot_and_clear(part, client)
    }
}

#[cfg(feature = "host")]
impl HostSide {
    fn new(
        max_size: u64,
        mapping: Option<mapping::Mapping>,
        guest_memfd: Option<rustix::fd::OwnedFd>,
    ) -> Self {
        let dirty = dirty::DirtyMemory::new(max_size);
        Self { mapping, guest_memfd, dirty, discards: Default::default(), resizes: Default::default() }
    }
}

fn check_size(name: &str, size: u64, page: PageSize) -> Result<(), MemoryError> {
    if size == 0 || !size.is_multiple_of(page.bytes()) {
        return Err(MemoryError::BlockSize { block: name.to_string(), size, page: page.bytes() });
    }
    Ok(())
}

impl fmt::Debug for RamBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RamBlock({} {:#x} bytes at {})", self.name, self.size(), self.hva)
    }
}
