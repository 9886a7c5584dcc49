//! The system calls that no safe crate here has: the one place here with `unsafe` in it.

pub(super) mod bpf;
pub(super) mod mount;
pub(super) mod perf;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A call that gave a file descriptor.
fn owned(result: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just given it to this caller alone.
    unsafe { OwnedFd::from_raw_fd(result as RawFd) }
}

/// A handle of a process: as long as it is open, the process's number is not given to another one.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: two numbers.
    checked(unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(pid), 0) }).map(owned)
}

/// A duplicate of another process's file descriptor.
pub fn pidfd_getfd(process: &OwnedFd, fd: RawFd) -> io::Result<OwnedFd> {
    let process = libc::c_long::from(process.as_raw_fd());
    // SAFETY: three numbers.
    checked(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process, libc::c_long::from(fd), 0) }).map(owned)
}

/// `KVM_GET_STATS_FD` of a VM or a vCPU.
pub fn kvm_stats_fd(vm_or_vcpu: RawFd) -> io::Result<OwnedFd> {
    /// `_IO(KVMIO, 0xce)`.
    const KVM_GET_STATS_FD: libc::Ioctl = 0xaece;
    // SAFETY: a number, and a request without an argument.
    checked(unsafe { libc::ioctl(vm_or_vcpu, KVM_GET_STATS_FD, 0) }.into()).map(owned)
}
