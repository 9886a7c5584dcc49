//! Memory of a confidential guest that this process cannot reach.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_bindings::{KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_create_guest_memfd};
use kvm_ioctls::VmFd;
use memory_model::{AddrRange, Gpa};

use super::Capability;
use crate::kernel::side_call;
use crate::slot::PrivatePart;
use crate::{Errno, Side, SlotError};

/// `KVM_CREATE_GUEST_MEMFD`: `size` bytes of private memory for `vm`. A block that is given it
/// ([`RamOptions::guest_memfd`](memory_model::RamOptions)) has slots with a private half.
///
/// Such slots cannot be logged, moved or read-only: what asks for that is refused before the call (rule R6).
pub fn create_guest_memfd(vm: &VmFd, size: u64) -> Result<OwnedFd, SlotError> {
    Capability::GUEST_MEMFD.require(vm)?;
    let fd = vm
        .create_guest_memfd(kvm_create_guest_memfd { size, ..Default::default() })
        .map_err(|error| SlotError::GuestMemfd { size, errno: Errno(error.errno()) })?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `KVM_SET_MEMORY_ATTRIBUTES`, for the attribute that says on which side a page is.
pub(super) fn set_side(vm: &VmFd, range: AddrRange<Gpa>, side: Side) -> Result<(), SlotError> {
    if Capability::MEMORY_ATTRIBUTES.require(vm)? & KVM_MEMORY_ATTRIBUTE_PRIVATE == 0 {
        return Err(SlotError::Missing { capability: Capability::MEMORY_ATTRIBUTES });
    }
    vm.set_memory_attributes(side_call(range, side)).map_err(|error| SlotError::Attributes {
        range,
        side,
        errno: Errno(error.errno()),
    })
}

/// Gives a part of a guest_memfd back to the host.
pub(super) fn punch_hole(part: &PrivatePart<'_>) -> Result<(), Errno> {
    let signed = |bytes| libc::off64_t::try_from(bytes).map_err(|_| Errno::EINVAL);
    let (offset, bytes) = (signed(part.offset)?, signed(part.bytes)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes no pointer. Nobody holds a reference to guest memory, which may become zero at any time.
    match unsafe { libc::fallocate64(part.fd.as_raw_fd(), mode, offset, bytes) } {
        0 => Ok(()),
        _ => Err(Errno(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))),
    }
}
