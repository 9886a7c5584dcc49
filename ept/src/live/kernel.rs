//! The running kernel: its memory, and where the fields of its structures are.

use alloc::vec;
use alloc::vec::Vec;
use std::sync::{Arc, OnceLock};

use super::LiveError;
use super::btf::Field;
use super::counters::Counters;
use super::host::{Host, SecondLevel, host_ram};
use super::layout::Layout;
use super::memory::{KernelMemory, Means};
use super::pagemap::Pagemap;

/// The running kernel, whose memory this process may read. One is enough for any number of VMs and threads.
#[derive(Debug)]
pub struct Kernel {
    memory: KernelMemory,
    pub(super) layout: Layout,
    pub(super) counters: Counters,
    pub(super) host: Host,
    /// The kernel's address of physical memory (`page_offset_base`), once a table has shown it.
    pub(super) direct_map: OnceLock<u64>,
}

impl Kernel {
    /// Finds a means to read the kernel's memory, the first of [`Means::ALL`] that is to be had, and its structures' fields. The
    /// error says what is missing.
    pub fn open() -> Result<Arc<Self>, LiveError> {
        Self::with(KernelMemory::open_any)
    }

    /// The same by that means alone.
    pub fn open_by(means: Means) -> Result<Arc<Self>, LiveError> {
        Self::with(|| KernelMemory::open(means))
    }

    fn with(memory: impl FnOnce() -> Result<KernelMemory, LiveError>) -> Result<Arc<Self>, LiveError> {
        // First what needs no rights, last what costs most.
        let (host, memory) = (Host::probe()?, memory()?);
        let (layout, counters) = Layout::of_this_kernel()?;
        let direct_map = memory.direct_map().map(OnceLock::from).unwrap_or_default();
        Ok(Arc::new(Self { memory, layout, counters, host, direct_map }))
    }

    /// By what the kernel's memory is read.
    pub fn means(&self) -> Means {
        self.memory.means()
    }

    /// All that is missing on this host for [`open`](Self::open) and for a check, and how to get it: not the first alone. Of
    /// [`Means`] one is enough: what each of them lacks is told where there is none.
    pub fn missing() -> Vec<LiveError> {
        let means = Means::ALL.map(Means::missing);
        let means = if means.iter().all(Option::is_some) { means } else { [None, None] };
        let parts = [Host::probe().err(), Layout::of_this_kernel().err()];
        let of_check = [host_ram().err(), Pagemap::shows_frames().err()];
        parts.into_iter().chain(means).chain(of_check).flatten().collect()
    }

    /// Reads as many bytes of the kernel's memory.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), LiveError> {
        self.memory.read(address, bytes)
    }

    /// A field of the structure at `address`.
    pub(super) fn field(&self, address: u64, field: Field) -> Result<u64, LiveError> {
        self.memory.field(address, field)
    }

    /// The number at `address`.
    pub(super) fn word(&self, address: u64) -> Result<u64, LiveError> {
        self.field(address, Field { bit: 0, bits: 64 })
    }

    /// The whole structure at `address`.
    pub(super) fn record(&self, address: u64, bytes: usize) -> Result<Record, LiveError> {
        let mut record = vec![0; bytes];
        self.read(address, &mut record)?;
        Ok(Record(record))
    }

    /// What KVM's tables translate on this host.
    pub fn second_level(&self) -> SecondLevel {
        self.host.second_level
    }

    /// The kernel's structure behind a file of this thread's (`file.private_data`).
    pub(super) fn private_data(&self, fd: u32) -> Result<u64, LiveError> {
        let layout = &self.layout;
        let files = self.memory.of_current_task(layout.task_files)?;
        let table = self.field(files, layout.files_table)?;
        if u64::from(fd) >= self.field(table, layout.table_most)? {
            return Err(LiveError::Unreadable { address: table });
        }
        let file = self.word(self.field(table, layout.table_files)?.wrapping_add(u64::from(fd) * 8))?;
        self.field(file, layout.file_private)
    }
}

/// A structure as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record(Vec<u8>);

impl Record {
    /// A field. Where a field lies outside of its structure, BTF has said so of both: it is taken for zero.
    pub fn get(&self, field: Field) -> u64 {
        field.value(&self.0).unwrap_or(0)
    }

    /// The first number of a field that is larger than one: of a list, its next element.
    pub fn word(&self, field: Field) -> u64 {
        self.get(Field { bits: 64, ..field })
    }
}
