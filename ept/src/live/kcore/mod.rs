//! Reading the kernel's memory from `/proc/kcore`: a core file of the running kernel, whose segments are its memory as it is
//! when it is read.
//!
//! The kernel's own map of physical memory is in it with both of its addresses; so is the `task_struct` of the thread that
//! reads. Where nothing is mapped between the kernel's allocations, or no RAM is, it gives zeroes.

mod elf;

use alloc::vec;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use self::elf::Core;
use super::LiveError;
use super::btf::Field;
use super::memory::is_locked_down;

const PATH: &str = "/proc/kcore";

/// The file, and what of the kernel's memory is where in it.
#[derive(Debug)]
pub(super) struct Kcore {
    file: File,
    core: Core,
}

impl Kcore {
    /// Opens it. Memory that is added to the machine from then on is not known.
    pub fn open() -> Result<Self, LiveError> {
        let file = File::open(PATH).map_err(refused)?;
        let core = Core::parse(|offset, bytes| file.read_exact_at(bytes, offset).map_err(refused))?;
        Ok(Self { file, core })
    }

    /// Reads as many bytes, all of one segment.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), LiveError> {
        let unreadable = LiveError::Unreadable { address };
        match self.core.offset(address, bytes.len() as u64) {
            Some(offset) => self.file.read_exact_at(bytes, offset).map_err(|_| unreadable),
            None => Err(unreadable),
        }
    }

    /// A field of the calling thread's `task_struct`, of which the file has a note.
    pub fn of_current_task(&self, field: Field) -> Result<u64, LiveError> {
        let mut notes = vec![0; self.core.notes.bytes];
        self.file.read_exact_at(&mut notes, self.core.notes.offset).map_err(refused)?;
        let task = elf::task_struct(&notes).and_then(|task| field.value(task));
        task.ok_or(LiveError::BadKcore("no note has the task that reads it"))
    }

    /// The kernel's address of physical memory.
    pub fn direct_map(&self) -> Option<u64> {
        self.core.direct_map()
    }
}

/// Why the kernel refuses.
fn refused(source: io::Error) -> LiveError {
    match source.raw_os_error() {
        Some(libc::EPERM) if is_locked_down() => LiveError::Lockdown,
        _ => LiveError::NoKcore { source },
    }
}
