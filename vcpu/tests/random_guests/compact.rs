//! Host-physical memory, moved together: the host's frames are scattered over hundreds of gigabytes, and a verifier
//! keeps a bit for every frame there might be.
//!
//! Each 2 MiB of host-physical memory that an entry or the host names gets a place among the first few; what lies
//! inside stays as it is. The verifier sees entries and frames at those places, and its findings name them.

use std::collections::HashMap;
use std::sync::Mutex;

use ept::{MemoryError, PhysMemory};
use memory_model::{AddrRange, Hpa};

use crate::layout::CHUNK;

/// Places, in chunks of 2 MiB: more than a guest of this test has frames.
const PLACES: u64 = 1024;
/// The bits of an entry that say which chunk: 45:21.
const CHUNK_BITS: u64 = (1 << 46) - CHUNK;

/// Memory behind places.
pub struct Compact<'a, M> {
    memory: &'a M,
    /// An entry with any of these names a frame.
    present: u64,
    places: Mutex<Places>,
}

#[derive(Default)]
struct Places {
    by_chunk: HashMap<u64, u64>,
    chunks: Vec<u64>,
}

impl<'a, M: PhysMemory> Compact<'a, M> {
    pub fn new(memory: &'a M, present: u64) -> Self {
        Self { memory, present, places: Mutex::default() }
    }

    /// Where all places lie.
    pub fn ram(&self) -> AddrRange<Hpa> {
        AddrRange::new(Hpa(0), (PLACES * CHUNK).into()).expect("below the end")
    }

    /// The place of an address.
    pub fn place(&self, hpa: Hpa) -> Hpa {
        let mut places = self.places.lock().expect("nobody panics with it");
        Hpa(places.place(hpa.0 & CHUNK_BITS) | hpa.0 & !CHUNK_BITS)
    }

    fn address(&self, place: u64) -> Result<u64, MemoryError> {
        let places = self.places.lock().expect("nobody panics with it");
        let chunk =
            places.chunks.get((place / CHUNK) as usize).ok_or(MemoryError::Absent { address: place })?;
        Ok(chunk | (place % CHUNK))
    }
}

impl Places {
    fn place(&mut self, chunk: u64) -> u64 {
        *self.by_chunk.entry(chunk).or_insert_with(|| {
            self.chunks.push(chunk);
            (self.chunks.len() as u64 - 1) * CHUNK
        })
    }
}

impl<M: PhysMemory> PhysMemory for Compact<'_, M> {
    /// An entry of the guest's own tables, or whether there is a table: as it is.
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.memory.read_entry(self.address(address)?)
    }

    /// A table of the second level.
    fn read_table(&self, table: u64, entries: &mut [u64; 512]) -> Result<(), MemoryError> {
        self.memory.read_table(self.address(table)?, entries)?;
        let mut places = self.places.lock().expect("nobody panics with it");
        for entry in entries.iter_mut().filter(|entry| **entry & self.present != 0) {
            *entry = places.place(*entry & CHUNK_BITS) | *entry & !CHUNK_BITS;
        }
        Ok(())
    }

    fn compare_exchange(&self, address: u64, _: u64, _: u64) -> Result<bool, MemoryError> {
        Err(MemoryError::ReadOnly { address })
    }
}
