//! Memory of a confidential guest that this process cannot reach.

use std::os::fd::{FromRawFd, OwnedFd};

use kvm_bindings::kvm_create_guest_memfd;
use kvm_ioctls::VmFd;

use super::Capability;
use crate::{Errno, SlotError};

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
