//! What the kernel is told about a mapping: huge pages, NUMA nodes, pages wanted now, pages not wanted.
#![expect(unsafe_code, reason = "madvise and mbind take addresses")]

use core::ffi::c_void;
use core::ops::Range;

use rustix::io::{Errno, Result};
use rustix::mm::{Advice, madvise};

use super::create::punch_hole;
use super::mapping::{Mapping, Source};
use super::options::NumaPolicy;

/// Fail if pages lie elsewhere and cannot be moved; move those that can.
const STRICT_AND_MOVE: libc::c_uint = 1 | 2;

impl Mapping {
    /// Asks for transparent huge pages, or forbids them.
    pub(super) fn advise_thp(&mut self, wanted: bool) -> Result<()> {
        self.thp = wanted;
        let advice = if wanted { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        // A kernel without transparent huge pages does not know the advice: then there is nothing to forbid.
        match self.advise(0..self.length, advice) {
            Err(Errno::INVAL) if !wanted => Ok(()),
            answer => answer,
        }
    }

    /// Fills page tables and pages as a write would. `EINVAL` on kernels before 5.14.
    pub(super) fn populate(&self, part: Range<usize>) -> Result<()> {
        self.advise(part, Advice::LinuxPopulateWrite)
    }

    /// The same by hand: writes to each page what it holds.
    pub(super) fn touch(&self, part: Range<usize>) {
        for offset in part.step_by(self.page.bytes() as usize) {
            // An `or` with zero would be compiled to nothing.
            let held = self.load(offset);
            self.compare_exchange(offset, held, held);
        }
    }

    /// Gives a part (whole pages) back to the kernel. It reads as zero afterwards, but for a private mapping
    /// of a named file: that shows the file's bytes again, since the file is not ours to change.
    pub(super) fn release(&self, part: Range<usize>) -> Result<()> {
        let (start, len) = (part.start as u64, part.len() as u64);
        match &self.source {
            Source::Anonymous if self.shared => self.advise(part, Advice::LinuxRemove),
            Source::Anonymous => self.advise(part, Advice::LinuxDontNeed),
            Source::Memfd(file) => {
                punch_hole(file, start, len)?;
                if self.shared { Ok(()) } else { self.advise(part, Advice::LinuxDontNeed) }
            }
            Source::File { file, offset } if self.shared => punch_hole(file, offset + start, len),
            Source::File { .. } => self.advise(part, Advice::LinuxDontNeed),
        }
    }

    /// Sets where pages are allocated from now on, and moves those that are there.
    pub(super) fn bind(&self, policy: &NumaPolicy) -> Result<()> {
        let (mode, nodes) = match policy {
            NumaPolicy::Inherit => return Ok(()),
            NumaPolicy::Bind(nodes) => (libc::MPOL_BIND, &nodes[..]),
            NumaPolicy::Preferred(node) => (libc::MPOL_PREFERRED, core::slice::from_ref(node)),
            NumaPolicy::Interleave(nodes) => (libc::MPOL_INTERLEAVE, &nodes[..]),
        };
        let bits = u64::BITS;
        let words = nodes.iter().max().map_or(0, |&last| last / bits + 1);
        // The kernel knows at most 1,024 nodes.
        if words > 1024 / bits {
            return Err(Errno::INVAL);
        }
        let mut mask = vec![0_u64; words as usize];
        nodes.iter().for_each(|&node| mask[(node / bits) as usize] |= 1 << (node % bits));
        // The kernel takes the number of bits plus one.
        let bits = mask.len() as u64 * u64::from(bits) + 1;
        // SAFETY: the range is this mapping's, the mask is as long as said, and both outlive the call.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.start,
                self.length,
                mode,
                mask.as_ptr(),
                bits,
                STRICT_AND_MOVE,
            )
        };
        if answer == 0 {
            Ok(())
        } else {
            Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
        }
    }

    fn advise(&self, part: Range<usize>, advice: Advice) -> Result<()> {
        assert!(part.start <= part.end && part.end <= self.length, "checked by RamBlock");
        let start: *mut c_void = self.start.wrapping_byte_add(part.start);
        // SAFETY: the range is inside this mapping, whose bytes nobody holds a reference to: they may change,
        // and become zero, at any time.
        unsafe { madvise(start, part.len(), advice) }
    }
}
