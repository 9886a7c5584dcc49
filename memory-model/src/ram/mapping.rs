//! One `mmap` of guest memory, and access to its bytes.
//!
//! No Rust reference to the mapped bytes is ever made, but for the instant of an atomic operation: the
//! guest, a device or another process may change them at any time. Copies go through vm-memory's volatile
//! slices.
#![expect(unsafe_code, reason = "mapping memory and reaching it is what this module is for")]

use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, Ordering};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use crate::{Hva, PageSize};

/// What is mapped.
pub(super) enum Source {
    Anonymous,
    Memfd(OwnedFd),
    File { file: OwnedFd, offset: u64 },
}

/// Mapped, readable and writable bytes, unmapped on drop.
pub(super) struct Mapping {
    pub(super) start: *mut c_void,
    pub(super) length: usize,
    pub(super) page: PageSize,
    pub(super) shared: bool,
    /// Whether transparent huge pages were asked for.
    pub(super) thp: bool,
    pub(super) source: Source,
}

// SAFETY: the mapping belongs to the process, not to a thread, and all access to its bytes is volatile or
// atomic through raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes (whole pages of that size, not zero). From 2 MiB on the start is at least 2 MiB
    /// aligned, so that huge pages can back memory whose guest address is aligned too.
    pub(super) fn new(
        length: usize,
        page: PageSize,
        shared: bool,
        source: Source,
    ) -> rustix::io::Result<Self> {
        let huge = page.bytes().max(PageSize::Size2M.bytes()) as usize;
        let slack = if length >= huge { huge } else { 0 };
        let reserved = length.checked_add(slack).ok_or(rustix::io::Errno::NOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other.
        let reservation = unsafe {
            mmap_anonymous(
                core::ptr::null_mut(),
                reserved,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let lead = reservation.align_offset(huge) * usize::from(slack > 0);
        let start = reservation.wrapping_byte_add(lead);
        // From here on the drop of `mapping` gives the range back; the slack goes at once.
        let mapping = Self { start, length, page, shared, thp: false, source };
        // SAFETY: both pieces lie inside the reservation, outside `mapping`, and nobody knows them.
        unsafe {
            if lead > 0 {
                munmap(reservation, lead)?;
            }
            if slack > lead {
                munmap(start.wrapping_byte_add(length), slack - lead)?;
            }
        }
        mapping.fill()?;
        Ok(mapping)
    }

    /// Puts memory into the reserved range.
    fn fill(&self) -> rustix::io::Result<()> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let sharing = if self.shared { MapFlags::SHARED } else { MapFlags::PRIVATE };
        // Huge pages are set aside now: without that, a page that is missing later is a bus error.
        let (reserving, huge) = match self.page {
            // Hosts have no pages of 4 MiB.
            PageSize::Size4K | PageSize::Size4M => (MapFlags::NORESERVE, MapFlags::empty()),
            PageSize::Size2M => (MapFlags::empty(), MapFlags::HUGETLB | MapFlags::HUGE_2MB),
            PageSize::Size1G => (MapFlags::empty(), MapFlags::HUGETLB | MapFlags::HUGE_1GB),
        };
        let flags = sharing | reserving | MapFlags::FIXED;
        // SAFETY: replaces the reservation that this value owns, and nothing else.
        unsafe {
            match &self.source {
                Source::Anonymous => mmap_anonymous(self.start, self.length, rights, flags | huge)?,
                Source::Memfd(file) => mmap(self.start, self.length, rights, flags, file, 0)?,
                Source::File { file, offset } => mmap(self.start, self.length, rights, flags, file, *offset)?,
            }
        };
        Ok(())
    }

    pub(super) fn hva(&self) -> Hva {
        Hva(self.start as u64)
    }

    /// The file behind the memory, and where in it the memory begins.
    pub(super) fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        match &self.source {
            Source::Anonymous => None,
            Source::Memfd(file) => Some((file.as_fd(), 0)),
            Source::File { file, offset } => Some((file.as_fd(), *offset)),
        }
    }

    /// `len` bytes at `offset`, if they are inside; writes through the slice are noted in `bitmap`.
    #[inline]
    pub(super) fn slice<B: BitmapSlice>(
        &self,
        offset: u64,
        len: usize,
        bitmap: B,
    ) -> Option<VolatileSlice<'_, B>> {
        let offset = usize::try_from(offset).ok()?;
        if offset > self.length || len > self.length - offset {
            return None;
        }
        // SAFETY: the range is mapped as long as `self` lives, and the slice borrows `self`.
        Some(unsafe { VolatileSlice::with_bitmap(self.start.cast::<u8>().add(offset), len, bitmap, None) })
    }

    pub(super) fn load(&self, offset: usize) -> u64 {
        self.word(offset).load(Ordering::Acquire)
    }

    pub(super) fn compare_exchange(&self, offset: usize, old: u64, new: u64) -> u64 {
        match self.word(offset).compare_exchange(old, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(found) | Err(found) => found,
        }
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < self.length, "checked by RamBlock");
        // SAFETY: aligned, inside the mapping (whole pages), and an atomic may change under any reader.
        unsafe { AtomicU64::from_ptr(self.start.cast::<u8>().add(offset).cast()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own, and slices borrow the value.
        // An error would mean the range was not mapped: nothing is left to give back.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}
