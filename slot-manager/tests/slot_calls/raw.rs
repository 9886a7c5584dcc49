//! The real kernel's side: raw ioctls, answers as error numbers.
#![expect(unsafe_code, reason = "the raw ioctls are what the in-process kernel is compared with")]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use kvm_bindings::{
    kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1, kvm_create_guest_memfd, kvm_dirty_log,
    kvm_dirty_log__bindgen_ty_1, kvm_enable_cap, kvm_memory_attributes,
    kvm_userspace_memory_region as Region, kvm_userspace_memory_region2 as Region2,
};
use kvm_ioctls::VmFd;
use slot_manager::Errno;

/// The number of an ioctl of KVM: `_IO`, or with 1 to write to the kernel and 2 to read from it.
const fn number(direction: u64, index: u64, bytes: usize) -> u64 {
    direction << 30 | (bytes as u64) << 16 | 0xae << 8 | index
}

const SET_USER_MEMORY_REGION: u64 = number(1, 0x46, size_of::<Region>());
const SET_USER_MEMORY_REGION2: u64 = number(1, 0x49, size_of::<Region2>());
const GET_DIRTY_LOG: u64 = number(1, 0x42, size_of::<kvm_dirty_log>());
const CLEAR_DIRTY_LOG: u64 = number(3, 0xc0, size_of::<kvm_clear_dirty_log>());
const ENABLE_CAP: u64 = number(1, 0xa3, size_of::<kvm_enable_cap>());
const RESET_DIRTY_RINGS: u64 = number(0, 0xc7, 0);
const SET_MEMORY_ATTRIBUTES: u64 = number(1, 0xd2, size_of::<kvm_memory_attributes>());
const CREATE_GUEST_MEMFD: u64 = number(3, 0xd4, size_of::<kvm_create_guest_memfd>());

/// One ioctl; `argument` is a pointer to what the ioctl takes, or null.
fn ioctl<T>(vm: &VmFd, request: u64, argument: *const T) -> Result<u32, Errno> {
    // SAFETY: these VMs never run, so nothing reaches the memory of their slots. The kernel checks every pointer,
    // writes only where `kvm_dirty_log` points to, and `get_dirty_log` gives it a buffer for the longest slot.
    let answer = unsafe { libc::ioctl(vm.as_raw_fd(), request, argument) };
    u32::try_from(answer).map_err(|_| Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)))
}

pub fn set_region(vm: &VmFd, region: &Region) -> Result<(), Errno> {
    ioctl(vm, SET_USER_MEMORY_REGION, region).map(drop)
}

pub fn set_region2(vm: &VmFd, region: &Region2) -> Result<(), Errno> {
    ioctl(vm, SET_USER_MEMORY_REGION2, region).map(drop)
}

pub fn set_region_unreadable(vm: &VmFd) -> Result<(), Errno> {
    ioctl(vm, SET_USER_MEMORY_REGION, std::ptr::null::<Region>()).map(drop)
}

/// The bitmap of a slot; `None` passes a buffer that cannot be written.
pub fn get_dirty_log(vm: &VmFd, slot: u32, buffer: Option<&mut [u64; LONGEST]>) -> Result<(), Errno> {
    let pointer = buffer.map_or(std::ptr::null_mut(), |buffer| buffer.as_mut_ptr());
    let log = kvm_dirty_log {
        slot,
        padding1: 0,
        __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap: pointer.cast() },
    };
    ioctl(vm, GET_DIRTY_LOG, &log).map(drop)
}

/// Words of the bitmap of the longest slot that any call can make.
pub const LONGEST: usize = (64 << 20 >> 12) / 64;

/// `None` passes a bitmap that cannot be read.
pub fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    num_pages: u32,
    bitmap: Option<&[u64; LONGEST]>,
) -> Result<(), Errno> {
    let pointer = bitmap.map_or(std::ptr::null(), |bitmap| bitmap.as_ptr()).cast_mut();
    let log = kvm_clear_dirty_log {
        slot,
        num_pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap: pointer.cast() },
    };
    ioctl(vm, CLEAR_DIRTY_LOG, &log).map(drop)
}

pub fn enable_cap(vm: &VmFd, cap: u32, argument: u64) -> Result<(), Errno> {
    let enable = kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..Default::default() };
    ioctl(vm, ENABLE_CAP, &enable).map(drop)
}

pub fn reset_dirty_rings(vm: &VmFd) -> Result<u32, Errno> {
    ioctl(vm, RESET_DIRTY_RINGS, std::ptr::null::<u8>())
}

pub fn set_memory_attributes(vm: &VmFd, argument: &kvm_memory_attributes) -> Result<(), Errno> {
    ioctl(vm, SET_MEMORY_ATTRIBUTES, argument).map(drop)
}

pub fn create_guest_memfd(vm: &VmFd, request: &kvm_create_guest_memfd) -> Result<File, Errno> {
    let fd = ioctl(vm, CREATE_GUEST_MEMFD, request)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd as RawFd) })
}
