//! `/proc/PID/pagemap`: which frames a process's pages have (Linux, Documentation/admin-guide/mm/pagemap.rst).
//!
//! Eight bytes a page: bit 63 present, bit 61 a file's or shared memory, bit 56 mapped once, bits 54:0 the frame, which the
//! kernel shows only to a process with `CAP_SYS_ADMIN` and replaces by zero for all others.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use std::fs::File;
use std::os::unix::fs::FileExt;

use memory_model::{Hpa, Hva};

use super::LiveError;
use crate::verify::{HostMap, HostPage};

const PRESENT: u64 = 1 << 63;
const OF_FILE: u64 = 1 << 61;
const MAPPED_ONCE: u64 = 1 << 56;
const FRAME: u64 = (1 << 55) - 1;

/// The page map of a process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    path: String,
}

impl Pagemap {
    /// Of this process.
    pub fn of_this_process() -> Result<Self, LiveError> {
        Self::open("/proc/self/pagemap".into())
    }

    /// Of any process.
    pub fn of_process(pid: u32) -> Result<Self, LiveError> {
        Self::open(format!("/proc/{pid}/pagemap"))
    }

    /// Whether the page map of this process shows frames: it does so with `CAP_SYS_ADMIN` alone. Tried on a page of its own.
    pub(super) fn shows_frames() -> Result<(), LiveError> {
        let map = Self::of_this_process()?;
        let byte = Box::new(0u64);
        match map.page(Hva(core::ptr::from_ref(&*byte) as u64))? {
            HostPage::UNKNOWN => {
                let hidden = std::io::Error::other("shows no frames: run as root, or with CAP_SYS_ADMIN");
                Err(LiveError::Host { path: map.path, source: hidden })
            }
            _ => Ok(()),
        }
    }

    fn open(path: String) -> Result<Self, LiveError> {
        match File::open(&path) {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(LiveError::Host { path, source }),
        }
    }

    /// What is behind the page around `hva`: [`HostPage::UNKNOWN`] where frames are hidden.
    pub fn page(&self, hva: Hva) -> Result<HostPage, LiveError> {
        let mut entry = [0; 8];
        let read = self.file.read_exact_at(&mut entry, hva.page_number() * 8);
        read.map_err(|source| LiveError::Host { path: self.path.clone(), source })?;
        Ok(page(u64::from_le_bytes(entry)))
    }
}

impl HostMap for Pagemap {
    fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
        let mut entries = [0; 512 * 8];
        for (number, part) in (hva.page_number()..).step_by(512).zip(pages.chunks_mut(512)) {
            let bytes = &mut entries[..part.len() * 8];
            // Where the process's addresses end the file does, too.
            let read = self.file.read_at(bytes, number.saturating_mul(8)).unwrap_or(0);
            let (known, unknown) = part.split_at_mut(read / 8);
            for (to, entry) in known.iter_mut().zip(bytes.chunks_exact(8)) {
                *to = page(entry.iter().rev().fold(0, |entry, &byte| entry << 8 | u64::from(byte)));
            }
            unknown.fill(HostPage::UNKNOWN);
        }
    }
}

fn page(entry: u64) -> HostPage {
    match (entry & PRESENT != 0, entry & FRAME) {
        (false, _) => HostPage::ABSENT,
        (true, 0) => HostPage::UNKNOWN,
        (true, frame) if entry & OF_FILE != 0 || entry & MAPPED_ONCE == 0 => {
            HostPage::at(Hpa(frame << 12)).shared()
        }
        (true, frame) => HostPage::at(Hpa(frame << 12)),
    }
}
