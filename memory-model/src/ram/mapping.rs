//! One `mmap` of guest memory: the only `unsafe` of this crate.
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

use crate::{Hva, PageSize};

/// Mapped, readable and writable bytes, unmapped on drop.
pub(super) struct Mapping {
    start: *mut c_void,
    length: usize,
    fd: Option<OwnedFd>,
}

// SAFETY: the mapping belongs to the process, not to a thread, and all access to its bytes is volatile or
// atomic through raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `length` bytes (whole pages, not zero), private or shared behind `fd`. From 2 MiB on the start is 2 MiB aligned,
    /// so that huge pages can back memory whose guest address is aligned too.
    pub(super) fn new(length: usize, fd: Option<OwnedFd>) -> rustix::io::Result<Self> {
        let huge = PageSize::Size2M.bytes() as usize;
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
        let mapping = Self { start, length, fd };
        // SAFETY: both pieces lie inside the reservation, outside `mapping`, and nobody knows them.
        unsafe {
            if lead > 0 {
                munmap(reservation, lead)?;
            }
            if slack > lead {
                munmap(start.wrapping_byte_add(length), slack - lead)?;
            }
        }
        mapping.populate()?;
        Ok(mapping)
    }

    /// Puts memory into the reserved range.
    fn populate(&self) -> rustix::io::Result<()> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces the reservation that this value owns, and nothing else.
        unsafe {
            match &self.fd {
                None => {
                    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
                    mmap_anonymous(self.start, self.length, rights, flags)?
                }
                Some(fd) => {
                    let flags = MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED;
                    mmap(self.start, self.length, rights, flags, fd, 0)?
                }
            }
        };
        Ok(())
    }

    pub(super) fn hva(&self) -> Hva {
        Hva(self.start as u64)
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// `len` bytes at `offset`, which the caller has checked to be inside.
    pub(super) fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        assert!(offset <= self.length && len <= self.length - offset, "checked by RamBlock");
        // SAFETY: the range is mapped as long as `self` lives, and the slice borrows `self`.
        unsafe { VolatileSlice::new(self.start.cast::<u8>().add(offset), len) }
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
