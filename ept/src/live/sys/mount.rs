//! A file system that is mounted nowhere: fsopen(2), fsconfig(2), fsmount(2).

use core::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{checked, owned};

const CLOSE_ON_EXEC: libc::c_ulong = 1;
const CONFIG_CREATE: libc::c_uint = 6;

/// Its root folder. Nobody else sees it, and with the file it is gone.
pub fn detached(file_system: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: a string that ends with a zero, and a number.
    let context = unsafe { libc::syscall(libc::SYS_fsopen, file_system.as_ptr(), CLOSE_ON_EXEC) };
    let context = checked(context).map(owned)?;
    let (fd, nothing) = (context.as_raw_fd(), core::ptr::null::<libc::c_void>());
    // SAFETY: the command takes no key and no value.
    checked(unsafe { libc::syscall(libc::SYS_fsconfig, fd, CONFIG_CREATE, nothing, nothing, 0) })?;
    // SAFETY: three numbers.
    checked(unsafe { libc::syscall(libc::SYS_fsmount, fd, CLOSE_ON_EXEC, 0) }).map(owned)
}
