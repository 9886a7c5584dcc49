//! The running kernel: its memory, and where the fields of its structures are.

use alloc::vec;
use alloc::vec::Vec;
use std::sync::{Arc, OnceLock};

use super::LiveError;
use super::bpf::{KernelMemory, MOST};
use super::btf::Field;
use super::counters::Counters;
use super::host::{Host, SecondLevel, host_ram};
use super::layout::Layout;
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
    /// Loads the programs that read the kernel's memory, and finds its structures' fields. The error says what is missing.
    pub fn open() -> Result<Arc<Self>, LiveError> {
        // First what needs no rights, last what costs most.
        let (host, memory) = (Host::probe()?, KernelMemory::open()?);
        let (layout, counters) = Layout::of_this_kernel()?;
        Ok(Arc::new(Self { memory, layout, counters, host, direct_map: OnceLock::new() }))
    }

    /// All that is missing on this host for [`open`](Self::open) and for a check, and how to get it: not the first alone.
    pub fn missing() -> Vec<LiveError> {
        let parts = [
            Host::probe().err(),
            Layout::of_this_kernel().err(),
            KernelMemory::open().err(),
            host_ram().err(),
            Pagemap::shows_frames().err(),
        ];
        parts.into_iter().flatten().collect()
    }

    /// Reads as many bytes of the kernel's memory.
    pub(super) fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), LiveError> {
        for (number, part) in (0..).zip(bytes.chunks_mut(MOST)) {
            self.memory.read(address.wrapping_add(number * MOST as u64), part)?;
        }
        Ok(())
    }

    /// A field of the structure at `address`. Nothing else of it is read: structures may end before a page does.
    pub(super) fn field(&self, address: u64, field: Field) -> Result<u64, LiveError> {
        let mut bytes = [0; 8];
        let shift = Field { bit: field.bit % 8, bits: field.bits.min(64) };
        let bytes = &mut bytes[..((shift.bit + shift.bits).div_ceil(8) as usize).min(8)];
        self.memory.read(address.wrapping_add(field.offset()), bytes)?;
        Ok(shift.value(bytes).unwrap_or(0))
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
        let files = self.field(self.memory.current_task()?, layout.task_files)?;
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
