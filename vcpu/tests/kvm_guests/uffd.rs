//! userfaultfd(2): a thread of this process is told of each page that somebody misses or may not write, and lets him
//! go on. Somebody includes KVM, which takes the page for its guest.
#![expect(unsafe_code, reason = "userfaultfd changes what lies behind addresses of this process")]

use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsRawFd, FromRawFd};
use std::thread;

use memory_model::{Hva, PageSize};

const PAGE: u64 = PageSize::Size4K.bytes();

/// What it tells of (`UFFDIO_REGISTER_MODE_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Mode {
    /// A page that is not there.
    Missing = 1 << 0,
    /// A write to a page that is protected.
    WriteProtect = 1 << 1,
    /// A page that its file has and this mapping has not yet.
    Minor = 1 << 2,
}

impl Mode {
    /// The `UFFD_FEATURE_*` that it needs.
    fn features(self) -> u64 {
        match self {
            Self::Missing => 0,
            Self::WriteProtect => 1 << 0,
            Self::Minor => 1 << 10,
        }
    }

    /// The `UFFD_PAGEFAULT_FLAG_*` of its faults, among those two that name a mode.
    fn flag(self) -> u64 {
        match self {
            Self::Missing => 0,
            Self::WriteProtect => 1 << 1,
            Self::Minor => 1 << 2,
        }
    }
}

/// Watches one stretch of memory until it is dropped.
pub struct Uffd {
    file: File,
    mode: Mode,
}

/// `_IOWR(0xaa, number, [u64; words])`: all arguments are plain words.
const fn request(number: u64, words: u64) -> libc::Ioctl {
    (3 << 30 | (words * 8) << 16 | 0xaa << 8 | number) as libc::Ioctl
}

impl Uffd {
    /// Watches `bytes` from `start`; the error is the kernel's that lacks the call, the mode or the right to it.
    pub fn watch(start: Hva, bytes: u64, mode: Mode) -> io::Result<Self> {
        // One that blocks cannot be polled.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        let uffd = Self { file: unsafe { File::from_raw_fd(fd as i32) }, mode };
        uffd.call(0x3f, [0xaa, mode.features(), 0])?;
        uffd.call(0x00, [start.raw(), bytes, mode as u64, 0])?;
        Ok(uffd)
    }

    /// Does `act`, while another thread has `serve` put right each fault. Gives what `act` did and where the
    /// faults were, in their order.
    pub fn serving<T>(
        &self,
        mut serve: impl FnMut(Hva) -> io::Result<()> + Send,
        act: impl FnOnce() -> T,
    ) -> (T, Vec<Hva>) {
        let (end, running) = io::pipe().unwrap();
        thread::scope(|scope| {
            let server = scope.spawn(move || {
                let mut faults = Vec::new();
                while let Some(fault) = self.next(&end) {
                    faults.push(fault);
                    serve(fault).unwrap();
                }
                faults
            });
            // Gone after `act`, be it by a panic: that ends the server.
            let running = running;
            let done = act();
            drop(running);
            (done, server.join().unwrap())
        })
    }

    /// The page of the next fault, or `None` once the other side of `end` is closed.
    fn next(&self, end: &PipeReader) -> Option<Hva> {
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [watch(self.file.as_raw_fd()), watch(end.as_raw_fd())];
        // SAFETY: the array is valid for the call, and both files are open.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, -1) };
        assert!(ready > 0, "{}", io::Error::last_os_error());
        if fds[0].revents == 0 {
            return None;
        }
        // `struct uffd_msg`: the event, flags, the address.
        let mut message = [0; 32];
        assert_eq!((&self.file).read(&mut message).unwrap(), message.len());
        let word = |at: usize| u64::from_le_bytes(message[at..at + 8].try_into().unwrap());
        assert_eq!((message[0], word(8) & 0x6), (0x12, self.mode.flag()), "a fault of another kind");
        Some(Hva(word(16)).align_down(PageSize::Size4K))
    }

    /// `UFFDIO_COPY`: a missing page comes to be, with these bytes, and who waits for it goes on.
    pub fn copy(&self, page: Hva, bytes: &[u8; PAGE as usize]) -> io::Result<()> {
        self.call(0x03, [page.raw(), bytes.as_ptr() as u64, PAGE, 0, 0])
    }

    /// `UFFDIO_WRITEPROTECT`: protects pages, or lets who waits for them go on.
    pub fn protect(&self, start: Hva, bytes: u64, protect: bool) -> io::Result<()> {
        self.call(0x06, [start.raw(), bytes, protect.into()])
    }

    /// `UFFDIO_CONTINUE`: maps the page that the file has.
    pub fn map(&self, page: Hva) -> io::Result<()> {
        self.call(0x07, [page.raw(), PAGE, 0, 0])
    }

    fn call<const WORDS: usize>(&self, number: u64, mut argument: [u64; WORDS]) -> io::Result<()> {
        let request = request(number, WORDS as u64);
        // SAFETY: the argument has the size that the request names, and is ours. What the calls change in this
        // process is guest memory that `watch` was given, to which there are no references; the kernel only reads what
        // `copy` lends it.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), request, argument.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
