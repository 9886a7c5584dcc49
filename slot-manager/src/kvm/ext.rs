//! The ioctls that kvm-ioctls lacks, and nothing else: `KVM_GET_DIRTY_LOG` into a buffer that is checked against
//! the slot, `KVM_CLEAR_DIRTY_LOG`, `KVM_RESET_DIRTY_RINGS`, and `KVM_IOEVENTFD` with a width but no value.

use std::ffi::{c_int, c_void};
use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVMIO, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1, kvm_ioeventfd,
};
use kvm_ioctls::VmFd;

use crate::Errno;

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ_WRITE: u32 = 3;

/// The number of an ioctl with an argument of `size` bytes.
const fn request(direction: u32, number: u32, size: usize) -> libc::Ioctl {
    (direction << 30 | (size as u32) << 16 | KVMIO << 8 | number) as libc::Ioctl
}

const KVM_GET_DIRTY_LOG: libc::Ioctl = request(WRITE, 0x42, size_of::<kvm_dirty_log>());
const KVM_IOEVENTFD: libc::Ioctl = request(WRITE, 0x79, size_of::<kvm_ioeventfd>());
const KVM_CLEAR_DIRTY_LOG: libc::Ioctl = request(READ_WRITE, 0xc0, size_of::<kvm_clear_dirty_log>());
const KVM_RESET_DIRTY_RINGS: libc::Ioctl = request(NONE, 0xc7, 0);

fn answer(result: c_int) -> Result<u32, Errno> {
    u32::try_from(result).map_err(|_| {
        Errno(std::io::Error::last_os_error().raw_os_error().expect("an ioctl that fails says why"))
    })
}

/// Reads the log of a slot of `pages` pages. `slot` is the kernel's number, address space included.
///
/// # Safety
///
/// The slot must not have more than `pages` pages: the kernel writes a bit for each of its pages.
pub(super) unsafe fn get_dirty_log(
    vm: &VmFd,
    slot: u32,
    pages: u64,
    bitmap: &mut [u64],
) -> Result<(), Errno> {
    assert_eq!(bitmap.len() as u64, pages.div_ceil(64), "a bit for each page, rounded up (rule D1)");
    let dirty_bitmap = bitmap.as_mut_ptr().cast::<c_void>();
    let log =
        kvm_dirty_log { slot, padding1: 0, __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap } };
    // SAFETY: the argument is valid for the call, and `bitmap` holds all that the kernel writes, by the
    // caller's promise.
    answer(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_GET_DIRTY_LOG, &raw const log) }).map(drop)
}

/// Clears the bits set in `bitmap`, which starts at `first_page`, and protects those pages anew.
pub(super) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    num_pages: u32,
    bitmap: &[u64],
) -> Result<(), Errno> {
    assert!(bitmap.len() as u64 >= u64::from(num_pages).div_ceil(64), "a bit for each page");
    let dirty_bitmap = bitmap.as_ptr().cast_mut().cast::<c_void>();
    let log = kvm_clear_dirty_log {
        slot,
        num_pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap },
    };
    // SAFETY: the argument is valid for the call; the kernel only reads the bitmap, no further than
    // `num_pages` bits.
    answer(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG, &raw const log) }).map(drop)
}

/// Gives the harvested entries of all rings back and protects their pages anew; how many there were.
pub(super) fn reset_dirty_rings(vm: &VmFd) -> Result<u32, Errno> {
    // SAFETY: takes no argument, touches no memory of this process but the rings, which are shared.
    answer(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS, 0) })
}

/// Adds or removes an ioeventfd. kvm-ioctls takes the width from the value to match, so it cannot have the one
/// without the other.
pub(super) fn ioeventfd(vm: &VmFd, argument: &kvm_ioeventfd) -> Result<(), Errno> {
    // SAFETY: the argument is valid for the call, and only read.
    answer(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_IOEVENTFD, &raw const *argument) }).map(drop)
}
