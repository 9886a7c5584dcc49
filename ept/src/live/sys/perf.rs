//! perf_event_open(2), and the ring that the kernel writes records to.

use alloc::vec::Vec;
use core::ffi::CStr;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{checked, owned};

/// `struct perf_event_attr`, as long as it was in Linux 4.1.
#[repr(C)]
#[derive(Default)]
struct Attr {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    bp_type: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clock: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const TYPE_TRACEPOINT: u32 = 2;
/// What a sample has, in this order: process and thread, time, the event's own record.
const SAMPLE: u64 = 1 << 1 | 1 << 2 | 1 << 10;
/// Threads that the watched one makes are watched, too.
const INHERIT: u64 = 1 << 1;
/// One clock for all processors, so that records of several can be put in order.
const USE_CLOCK: u64 = 1 << 25;
const THIS_THREAD: libc::pid_t = 0;
const NO_GROUP: i32 = -1;
const CLOSE_ON_EXEC: libc::c_ulong = 1 << 3;

/// Each occurrence of a trace event in this thread, and in those that it makes from now on, while it is on that processor.
pub fn watch(tracepoint: u64, cpu: u32) -> io::Result<OwnedFd> {
    let attr = Attr {
        kind: TYPE_TRACEPOINT,
        size: size_of::<Attr>() as u32,
        config: tracepoint,
        sample_period: 1,
        sample_type: SAMPLE,
        flags: INHERIT | USE_CLOCK,
        clock: libc::CLOCK_MONOTONIC,
        ..Attr::default()
    };
    let attr = core::ptr::from_ref(&attr);
    // SAFETY: the kernel reads as many bytes of the structure as it says that it has, all of them integers.
    checked(unsafe {
        libc::syscall(libc::SYS_perf_event_open, attr, THIS_THREAD, cpu as i32, NO_GROUP, CLOSE_ON_EXEC)
    })
    .map(owned)
}

/// Nanoseconds, as records have them.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to a value of this function's own. It always has this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What an event records goes to the ring of another one of the same processor.
pub fn redirect(event: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    /// `PERF_EVENT_IOC_SET_OUTPUT`.
    const SET_OUTPUT: libc::Ioctl = 0x2405;
    // SAFETY: two numbers.
    checked(unsafe { libc::ioctl(event.as_raw_fd(), SET_OUTPUT, to.as_raw_fd()) }.into()).map(|_| ())
}

/// Of the event's occurrences, only those count that a condition on its fields holds for (Linux, Documentation/trace/events.rst,
/// "Event filtering").
pub fn filter(event: &OwnedFd, condition: &CStr) -> io::Result<()> {
    /// `PERF_EVENT_IOC_SET_FILTER`.
    const SET_FILTER: libc::Ioctl = 0x4008_2406;
    // SAFETY: the kernel reads a string that ends.
    checked(unsafe { libc::ioctl(event.as_raw_fd(), SET_FILTER, condition.as_ptr()) }.into()).map(|_| ())
}

/// Where `struct perf_event_mmap_page` has, in words, how far the kernel has written and how far the reader has read.
const DATA_HEAD: usize = 1024 / 8;
const DATA_TAIL: usize = 1032 / 8;
const PAGE: usize = 4096;

/// The ring of an event.
#[derive(Debug)]
pub struct Ring {
    page: NonNull<u64>,
    /// Bytes of records, behind the first page: a power of two.
    bytes: usize,
}

// SAFETY: the mapping is no thread's own.
unsafe impl Send for Ring {}

impl Ring {
    /// Makes a ring for `bytes` of records: a power of two, and at least a page.
    pub fn map(event: &OwnedFd, bytes: usize) -> io::Result<Self> {
        let (nowhere, fd) = (core::ptr::null_mut(), event.as_raw_fd());
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, wherever the kernel has room for it.
        let at = unsafe { libc::mmap(nowhere, PAGE + bytes, access, libc::MAP_SHARED, fd, 0) };
        let page = NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED);
        page.map(|page| Self { page, bytes }).ok_or_else(io::Error::last_os_error)
    }

    fn position(&self, word: usize) -> &AtomicU64 {
        // SAFETY: inside the first page, aligned, and accessed by both sides as an atomic.
        unsafe { AtomicU64::from_ptr(self.page.add(word).as_ptr()) }
    }

    /// Takes what is there, in the order in which it came.
    pub fn take(&mut self) -> Vec<u8> {
        let (head, tail) = (self.position(DATA_HEAD), self.position(DATA_TAIL));
        let (from, to) = (tail.load(Ordering::Relaxed), head.load(Ordering::Acquire));
        let mut taken = Vec::new();
        // Records are whole words.
        for at in (from..to).step_by(8) {
            let word = (at % self.bytes as u64) as usize / 8;
            // SAFETY: behind the first page and inside the mapping. The kernel does not write there again before it is told that
            // this was read.
            taken.extend(unsafe { self.page.add(PAGE / 8 + word).read_volatile() }.to_ne_bytes());
        }
        tail.store(to, Ordering::Release);
        taken
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing is borrowed from it.
        unsafe { libc::munmap(self.page.as_ptr().cast(), PAGE + self.bytes) };
    }
}
