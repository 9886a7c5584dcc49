//! Accesses by host-physical address, and the frames of tables.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use ept::{MemoryError, PhysMemory};
use memory_model::{Hpa, PageSize, RamBlock, RamPage};

use super::Host;
use super::chunked::Chunked;
use super::record::{Record, Use};

const ENTRIES: usize = 512;
const FRAME: u64 = PageSize::Size4K.bytes();

/// The bytes of a frame that has its own.
pub(super) struct Table([AtomicU64; ENTRIES]);

impl Default for Table {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }
}

impl Table {
    /// The entries, one by one.
    pub(super) fn entries(&self) -> &[AtomicU64; ENTRIES] {
        &self.0
    }

    #[inline]
    fn entry(&self, address: u64) -> &AtomicU64 {
        &self.0[(address % FRAME / 8) as usize]
    }

    pub(super) fn clear(&self) {
        self.0.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    }

    /// Bytes from `offset` on, all inside.
    fn copy_to(&self, offset: usize, buf: &mut [u8]) {
        for (byte, at) in buf.iter_mut().zip(offset..) {
            *byte = self.0[at / 8].load(Ordering::Acquire).to_le_bytes()[at % 8];
        }
    }
}

/// The bytes of tables and of shared frames.
#[derive(Default)]
pub(super) struct TableBytes {
    tables: Chunked<Table, 8>,
    free: Mutex<Free>,
}

#[derive(Default)]
struct Free {
    used: u64,
    /// Zeroed ones.
    again: Vec<u64>,
    /// Table frames that were given back since the last [`Host::quiesce`].
    retired: Vec<u64>,
}

impl TableBytes {
    /// A zeroed one.
    pub(super) fn allocate(&self) -> u64 {
        self.with_free(|free| {
            free.again.pop().unwrap_or_else(|| {
                free.used += 1;
                free.used - 1
            })
        })
    }

    pub(super) fn at(&self, number: u64) -> &Table {
        self.tables.at(number)
    }

    /// Takes back one that is zeroed.
    pub(super) fn free(&self, number: u64) {
        self.with_free(|free| free.again.push(number));
    }

    fn with_free<T>(&self, act: impl FnOnce(&mut Free) -> T) -> T {
        act(&mut self.free.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where the bytes of an address are.
enum Bytes<'a> {
    Ram(&'a RamBlock, u64),
    Table(&'a Table),
}

impl Host {
    /// Reads guest memory. All bytes lie in one frame.
    pub fn read(&self, hpa: Hpa, buf: &mut [u8]) -> Result<(), MemoryError> {
        let absent = MemoryError::Absent { address: hpa.0 };
        let record = self.zones.record(hpa.page_number());
        match record.usage() {
            Use::Page(_) => {
                let (block, offset) = self.ram(hpa.0, record)?;
                block.read(offset, buf).map_err(|_| absent)
            }
            Use::Shared(bytes) if hpa.0 % FRAME + buf.len() as u64 <= FRAME => {
                self.bytes.at(bytes).copy_to((hpa.0 % FRAME) as usize, buf);
                Ok(())
            }
            _ => Err(absent),
        }
    }

    /// Writes guest memory. All bytes lie in one frame. A table is not guest memory: a mapping that leads the guest to
    /// one is a broken mapping.
    pub fn write(&self, hpa: Hpa, data: &[u8]) -> Result<(), MemoryError> {
        let (block, offset) = self.writable_ram(hpa.0, self.zones.record(hpa.page_number()))?;
        block.write(offset, data).map_err(|_| MemoryError::Absent { address: hpa.0 })
    }

    /// The page of guest memory at `hpa`, to be read or written as long as the frame is the page's; `None` where only
    /// [`read`](Self::read) and [`write`](Self::write) reach the bytes, if they do.
    pub(in crate::soft) fn page(&self, hpa: Hpa, write: bool) -> Option<RamPage> {
        let record = self.zones.record(hpa.page_number());
        let Use::Page(id) = record.usage() else { return None };
        let refused = record.is_no_access() || write && record.is_read_only();
        let block = self.block(id).filter(|_| !refused)?;
        RamPage::new(&block.ram, id.page * FRAME).ok()
    }

    /// Lets tables that were freed be given out again. Nobody who saw an entry that led to one may still be on the way:
    /// processors have let go of the MMU, or have flushed (what RCU waits for, for KVM's tables).
    pub fn quiesce(&self) {
        let retired = self.bytes.with_free(|free| std::mem::take(&mut free.retired));
        for frame in retired {
            if let Use::Retired(bytes) = self.zones.record(frame).usage() {
                self.bytes.at(bytes).clear();
                self.zones.free(frame);
                self.bytes.free(bytes);
            }
        }
    }

    pub(super) fn allocate_table_frame(&self) -> Option<u64> {
        let frame = self.zones.allocate(PageSize::Size4K)?;
        self.zones.set_record(frame, Record::table(self.bytes.allocate()));
        Some(frame * FRAME)
    }

    /// Its entries stay as they are, and nobody can change them, until no walker can be on its way to them any more.
    pub(super) fn retire_table_frame(&self, address: u64) {
        let frame = address / FRAME;
        if let Use::Table(bytes) = self.zones.record(frame).usage() {
            self.zones.set_record(frame, Record::retired(bytes));
            self.bytes.with_free(|free| free.retired.push(frame));
        }
    }

    /// The page of guest memory at `address`, for a read.
    #[inline]
    fn ram(&self, address: u64, record: Record) -> Result<(&RamBlock, u64), MemoryError> {
        let absent = MemoryError::Absent { address };
        let Use::Page(id) = record.usage() else { return Err(absent) };
        let block = self.block(id).filter(|_| !record.is_no_access()).ok_or(absent)?;
        Ok((&block.ram, id.page * FRAME + address % FRAME))
    }

    /// The same for a write.
    #[inline]
    fn writable_ram(&self, address: u64, record: Record) -> Result<(&RamBlock, u64), MemoryError> {
        if record.is_read_only() || matches!(record.usage(), Use::Shared(_)) {
            return Err(MemoryError::ReadOnly { address });
        }
        self.ram(address, record)
    }

    #[inline]
    fn readable(&self, address: u64) -> Result<Bytes<'_>, MemoryError> {
        let record = self.zones.record(address / FRAME);
        match record.usage() {
            Use::Table(bytes) | Use::Shared(bytes) | Use::Retired(bytes) => {
                Ok(Bytes::Table(self.bytes.at(bytes)))
            }
            _ => self.ram(address, record).map(|(block, offset)| Bytes::Ram(block, offset)),
        }
    }

    #[inline]
    fn writable(&self, address: u64) -> Result<Bytes<'_>, MemoryError> {
        let record = self.zones.record(address / FRAME);
        match record.usage() {
            Use::Table(bytes) => Ok(Bytes::Table(self.bytes.at(bytes))),
            _ => self.writable_ram(address, record).map(|(block, offset)| Bytes::Ram(block, offset)),
        }
    }
}

impl PhysMemory for Host {
    #[inline]
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        match self.readable(address)? {
            Bytes::Table(table) => Ok(table.entry(address).load(Ordering::Acquire)),
            Bytes::Ram(block, offset) => block.load_u64(offset).map_err(|_| MemoryError::Absent { address }),
        }
    }

    fn read_table(&self, table: u64, entries: &mut [u64; ENTRIES]) -> Result<(), MemoryError> {
        match self.readable(table)? {
            Bytes::Table(from) => {
                entries
                    .iter_mut()
                    .zip(from.entries())
                    .for_each(|(to, from)| *to = from.load(Ordering::Acquire));
                Ok(())
            }
            Bytes::Ram(block, offset) => {
                for (to, offset) in entries.iter_mut().zip((offset..).step_by(8)) {
                    *to = block.load_u64(offset).map_err(|_| MemoryError::Absent { address: table })?;
                }
                Ok(())
            }
        }
    }

    #[inline]
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        match self.writable(address)? {
            Bytes::Table(table) => {
                let entry = table.entry(address);
                Ok(entry.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).is_ok())
            }
            Bytes::Ram(block, offset) => {
                let found = block.compare_exchange_u64(offset, current, new);
                found.map(|found| found == current).map_err(|_| MemoryError::Absent { address })
            }
        }
    }

    fn write_entries(&self, address: u64, entries: &[u64]) -> Result<(), MemoryError> {
        match self.writable(address)? {
            Bytes::Table(table) => {
                let first = (address % FRAME / 8) as usize;
                let places = table.entries()[first..].iter();
                places.zip(entries).for_each(|(to, &entry)| to.store(entry, Ordering::Release));
                Ok(())
            }
            // Others write there too.
            Bytes::Ram(..) => {
                for (at, &entry) in (address..).step_by(8).zip(entries) {
                    while !self.compare_exchange(at, self.read_entry(at)?, entry)? {}
                }
                Ok(())
            }
        }
    }
}
