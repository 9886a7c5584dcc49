//! bpf(2), and the map that it fills.

use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{checked, owned};
use crate::live::bpf::MOST;

const MAP_CREATE: libc::c_long = 0;
const PROG_LOAD: libc::c_long = 5;
const PROG_TEST_RUN: libc::c_long = 10;

const MAP_TYPE_ARRAY: u32 = 2;
const F_MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_SYSCALL: u32 = 31;
const F_SLEEPABLE: u32 = 1 << 4;

/// `union bpf_attr`, the part for BPF_MAP_CREATE.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// The part for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct ProgTestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

/// A part of `union bpf_attr`.
///
/// # Safety
///
/// A `repr(C)` structure without padding, in which each address is that of memory that lives through the call and has
/// the length that stands beside it.
unsafe trait Attr {}

// SAFETY: no addresses in it.
unsafe impl Attr for MapCreate {}
// SAFETY: `load_program` alone makes one, from slices that it borrows.
unsafe impl Attr for ProgLoad {}
// SAFETY: `run_program` alone makes one, from a slice that it borrows.
unsafe impl Attr for ProgTestRun {}

fn bpf<A: Attr>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    let size = size_of::<A>() as libc::c_long;
    // SAFETY: the kernel reads and writes `size` bytes at `attr`, which is borrowed for that; what lies behind the addresses in
    // it is as `Attr` says.
    checked(unsafe { libc::syscall(libc::SYS_bpf, command, core::ptr::from_mut(attr), size) })
}

/// An array of one value, [`MOST`] bytes, which can be mapped.
pub fn create_map() -> io::Result<OwnedFd> {
    let mut attr = MapCreate {
        map_type: MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: MOST as u32,
        max_entries: 1,
        map_flags: F_MMAPABLE,
    };
    bpf(MAP_CREATE, &mut attr).map(owned)
}

/// A program that a system call runs, and that may wait for memory.
pub fn load_program(insns: &[u64]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let mut attr = ProgLoad {
        prog_type: PROG_TYPE_SYSCALL,
        insn_cnt: insns.len() as u32,
        insns: insns.as_ptr() as u64,
        license: license.as_ptr() as u64,
        prog_flags: F_SLEEPABLE,
        ..ProgLoad::default()
    };
    bpf(PROG_LOAD, &mut attr).map(owned)
}

/// Runs a program once, in the calling thread.
pub fn run_program(program: &OwnedFd, context: &mut [u64]) -> io::Result<()> {
    let mut attr = ProgTestRun {
        prog_fd: program.as_raw_fd() as u32,
        ctx_size_in: size_of_val(context) as u32,
        ctx_in: context.as_mut_ptr() as u64,
        ..ProgTestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut attr).map(|_| ())
}

/// The value of a map of [`create_map`], mapped to be read.
#[derive(Debug)]
pub struct MapValue(NonNull<u64>);

// SAFETY: the mapping is no thread's own.
unsafe impl Send for MapValue {}

impl MapValue {
    pub fn of(map: &OwnedFd) -> io::Result<Self> {
        let (nowhere, fd) = (core::ptr::null_mut(), map.as_raw_fd());
        // SAFETY: a new mapping, wherever the kernel has room for it.
        let at = unsafe { libc::mmap(nowhere, MOST, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        NonNull::new(at.cast())
            .filter(|_| at != libc::MAP_FAILED)
            .map(Self)
            .ok_or_else(io::Error::last_os_error)
    }

    /// The first bytes of it, as many as `bytes` takes, at most [`MOST`].
    pub fn read(&self, bytes: &mut [u8]) {
        for (at, part) in bytes.chunks_mut(8).enumerate().take(MOST / 8) {
            // SAFETY: inside the mapping, which lasts as long as `self`, and aligned. The kernel may write meanwhile: so it is
            // read as memory that others write, and never borrowed.
            let word = unsafe { self.0.add(at).read_volatile() };
            part.copy_from_slice(&word.to_ne_bytes()[..part.len()]);
        }
    }
}

impl Drop for MapValue {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing is borrowed from it.
        unsafe { libc::munmap(self.0.as_ptr().cast(), MOST) };
    }
}
