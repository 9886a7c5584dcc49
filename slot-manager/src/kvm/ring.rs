//! The dirty ring that a vCPU shares with the kernel (rule D5).

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use memory_model::PageSize;

use crate::Errno;

/// `KVM_DIRTY_GFN_F_DIRTY`: the kernel has filled the entry.
const DIRTY: u32 = 1 << 0;
/// `KVM_DIRTY_GFN_F_RESET`: we have read it.
const RESET: u32 = 1 << 1;

/// The ring of one vCPU, mapped. The kernel fills entries in order and says so in their flags; we read
/// them in order and say so likewise; a reset gives them back.
#[derive(Debug)]
pub(super) struct DirtyRing {
    entries: NonNull<kvm_dirty_gfn>,
    bytes: usize,
    /// Counts all entries read since the ring was made.
    next: usize,
}

// SAFETY: the mapping belongs to the process; whoever has the ring is its only reader.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of `vcpu`, of a VM with rings of `bytes` bytes.
    pub(super) fn map(vcpu: &impl AsRawFd, bytes: u32) -> Result<Self, Errno> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PageSize::Size4K.bytes();
        let (bytes, fd) = (bytes as usize, vcpu.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd, offset as libc::off_t)
        };
        match NonNull::new(base.cast()) {
            Some(entries) if base != libc::MAP_FAILED => Ok(Self { entries, bytes, next: 0 }),
            _ => Err(Errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOMEM))),
        }
    }

    /// How many entries it has.
    pub(super) fn len(&self) -> u32 {
        (self.bytes / size_of::<kvm_dirty_gfn>()) as u32
    }

    /// Reads all entries that the kernel has filled: kernel slot number and page in the slot. They belong to
    /// us until the rings are reset.
    pub(super) fn harvest(&mut self, found: &mut dyn FnMut(u32, u64)) -> u32 {
        let mut count = 0;
        // The kernel can go on filling while we read; a whole turn is all there can be before a reset.
        while count < self.len() {
            // SAFETY: the index lies inside the mapping, which lives as long as `self`.
            let entry = unsafe { self.entries.as_ptr().add(self.next % self.len() as usize) };
            // SAFETY: aligned and mapped; kernel and we access the flags atomically.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            if flags.load(Ordering::Acquire) & (DIRTY | RESET) != DIRTY {
                break;
            }
            // SAFETY: by its flag the kernel has filled the entry, and leaves it alone until it is reset.
            let (slot, page) = unsafe { ((*entry).slot, (*entry).offset) };
            found(slot, page);
            flags.store(RESET, Ordering::Release);
            self.next = self.next.wrapping_add(1);
            count += 1;
        }
        count
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no pointer into it outlives `self`.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), self.bytes) };
    }
}
