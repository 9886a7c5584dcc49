//! Memory that only a guest can reach: `guest_memfd`, as an object of this process.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::kvm_create_guest_memfd;
use memory_model::PageSize;

use super::runs::Runs;
use super::{KernelMemslots, MemfdRange};
use crate::Errno;

/// The descriptors that a VM's calls may name. They stand for the files of the VMM's process.
#[derive(Debug, Default)]
pub(super) struct Files {
    open: BTreeMap<u32, File>,
    next: u32,
}

#[derive(Debug)]
pub(super) enum File {
    /// A guest_memfd of this VM.
    GuestMemfd {
        /// Its size in bytes.
        size: u64,
        /// What slots have of it, first offset to end.
        bound: BTreeMap<u64, u64>,
        /// Its pages that have memory behind them.
        pages: Runs<()>,
    },
    /// Any other file. Another VM's guest_memfd is no better.
    Other,
}

impl File {
    /// Whether the file has that part, and no slot has any of it.
    pub(super) fn has(&self, offset: u64, bytes: u64) -> bool {
        let end = offset.checked_add(bytes);
        matches!(self, Self::GuestMemfd { size, .. } if end.is_some_and(|end| end <= *size))
    }

    /// Whether a slot has some of these bytes already.
    pub(super) fn is_bound(&self, offset: u64, bytes: u64) -> bool {
        let Self::GuestMemfd { bound, .. } = self else { return false };
        let below = bound.range(..offset.saturating_add(bytes)).next_back();
        below.is_some_and(|(_, end)| *end > offset)
    }
}

impl Files {
    pub(super) fn get(&self, fd: u32) -> Option<&File> {
        self.open.get(&fd)
    }

    fn open(&mut self, file: File) -> u32 {
        while self.open.contains_key(&self.next) {
            self.next += 1;
        }
        self.open.insert(self.next, file);
        self.next
    }

    fn bound(&mut self, fd: u32) -> Option<&mut BTreeMap<u64, u64>> {
        match self.open.get_mut(&fd)? {
            File::GuestMemfd { bound, .. } => Some(bound),
            File::Other => None,
        }
    }

    pub(super) fn bind(&mut self, part: MemfdRange, bytes: u64) {
        if let Some(bound) = self.bound(part.fd) {
            bound.insert(part.offset, part.offset + bytes);
        }
    }

    pub(super) fn unbind(&mut self, part: MemfdRange) {
        if let Some(bound) = self.bound(part.fd) {
            bound.remove(&part.offset);
        }
    }
}

impl KernelMemslots {
    /// `KVM_CREATE_GUEST_MEMFD`: a descriptor for [`KernelMemslots::set_user_memory_region2`]. ENOTTY on
    /// a kernel that has no such files; EINVAL for flags that it does not have, and for a size that is 0, not whole
    /// pages or past the longest file.
    pub fn create_guest_memfd(&mut self, request: &kvm_create_guest_memfd) -> Result<u32, Errno> {
        let file = self.new_guest_memfd(request)?;
        Ok(self.files.open(file))
    }

    /// The same under the number of a descriptor of this process: that of the file which a RAM block is given for
    /// its private half, and which is not looked at.
    pub fn create_guest_memfd_as(
        &mut self,
        fd: BorrowedFd<'_>,
        request: &kvm_create_guest_memfd,
    ) -> Result<(), Errno> {
        let file = self.new_guest_memfd(request)?;
        self.files.open.insert(fd.as_raw_fd() as u32, file);
        Ok(())
    }

    fn new_guest_memfd(&self, request: &kvm_create_guest_memfd) -> Result<File, Errno> {
        let flags = self.caps.guest_memfd.ok_or(Errno::ENOTTY)?;
        let pages = request.size.is_multiple_of(PageSize::Size4K.bytes());
        let length = i64::try_from(request.size).is_ok_and(|size| size > 0);
        if request.flags & !flags != 0 || !pages || !length {
            return Err(Errno::EINVAL);
        }
        Ok(File::GuestMemfd { size: request.size, bound: BTreeMap::new(), pages: Runs::default() })
    }

    /// `fallocate(2)` on a guest_memfd: gives its pages memory, as the guest's first access does, or with
    /// `FALLOC_FL_PUNCH_HOLE` takes it. `FALLOC_FL_KEEP_SIZE` must be there, for its size never changes.
    pub fn fallocate(&mut self, fd: u32, mode: i32, offset: u64, len: u64) -> Result<(), Errno> {
        let file = self.files.open.get_mut(&fd).ok_or(Errno::EBADF)?;
        let File::GuestMemfd { size, pages, .. } = file else { return Err(Errno::ENODEV) };
        let positive = i64::try_from(offset).is_ok() && i64::try_from(len).is_ok_and(|len| len > 0);
        let end = offset.checked_add(len).filter(|_| positive).ok_or(Errno::EINVAL)?;
        let punch = mode & libc::FALLOC_FL_PUNCH_HOLE != 0;
        if mode & !libc::FALLOC_FL_PUNCH_HOLE != libc::FALLOC_FL_KEEP_SIZE {
            return Err(Errno::EOPNOTSUPP);
        }
        let page = PageSize::Size4K;
        if !(offset | len).is_multiple_of(page.bytes()) || !punch && end > *size {
            return Err(Errno::EINVAL);
        }
        pages.set(offset >> page.shift()..end >> page.shift(), (!punch).then_some(()));
        Ok(())
    }

    /// The parts of a guest_memfd that have memory behind them, as `SEEK_DATA` and `SEEK_HOLE` find them.
    pub fn guest_memfd_data(&self, fd: u32) -> Result<Vec<Range<u64>>, Errno> {
        let shift = PageSize::Size4K.shift();
        match self.files.get(fd).ok_or(Errno::EBADF)? {
            File::Other => Err(Errno::EINVAL),
            File::GuestMemfd { pages, .. } => {
                Ok(pages.iter().map(|(run, ())| run.start << shift..run.end << shift).collect())
            }
        }
    }

    /// A descriptor of something else: a plain file, or another VM's guest_memfd.
    pub fn open_other_file(&mut self) -> u32 {
        self.files.open(File::Other)
    }

    /// `close`. Slots that have memory of the file stay, without that memory. EBADF if it is not open.
    pub fn close_file(&mut self, fd: u32) -> Result<(), Errno> {
        self.files.open.remove(&fd).ok_or(Errno::EBADF)?;
        for space in &mut self.spaces {
            space.forget_file(fd);
        }
        Ok(())
    }
}
