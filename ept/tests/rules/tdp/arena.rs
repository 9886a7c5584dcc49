//! Frames for tables: threads take and give them back at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use ept::{MemoryError, PhysMemory};
use memory_model::Hpa;

/// Where the first table lies.
const BASE: u64 = 0x10_0000;
const FRAME: u64 = 0x1000;
const TABLES: usize = 1 << 14;

/// Tables from 1 MiB on. What was given back is never given out again, so that whoever still uses it is found.
pub struct Arena {
    frames: Vec<OnceLock<Box<[AtomicU64; 512]>>>,
    /// In use, and given back.
    live: Mutex<(BTreeSet<u64>, BTreeSet<u64>)>,
    next: AtomicUsize,
    /// How many more there are.
    pub left: AtomicUsize,
    /// A frame to give out next, whatever lies there.
    pub wrong: AtomicU64,
    /// Others may be in a table that was given back, as `free_table` says; if not, an access to it is an error.
    pub grace: bool,
    /// An entry, and bits that hardware sets in it just before it is exchanged.
    pub mark: Mutex<Option<(u64, u64)>>,
}

impl Arena {
    pub fn new() -> Self {
        Self {
            frames: (0..TABLES).map(|_| OnceLock::new()).collect(),
            live: Mutex::default(),
            next: AtomicUsize::new(0),
            left: AtomicUsize::new(TABLES),
            wrong: AtomicU64::new(0),
            grace: false,
            mark: Mutex::new(None),
        }
    }

    pub fn allocate(&self) -> Option<u64> {
        let wrong = self.wrong.load(Ordering::Relaxed);
        if wrong != 0 {
            self.live.lock().unwrap().0.insert(wrong);
            return Some(wrong);
        }
        let one_less = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok()?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.frames[number].set(Box::new([const { AtomicU64::new(0) }; 512])).unwrap();
        let table = BASE + number as u64 * FRAME;
        self.live.lock().unwrap().0.insert(table);
        Some(table)
    }

    pub fn free(&self, table: u64) {
        let (live, dead) = &mut *self.live.lock().unwrap();
        assert!(live.remove(&table), "{table:#x} is given back twice");
        dead.insert(table);
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    /// Tables in use.
    pub fn live(&self) -> Vec<Hpa> {
        self.live.lock().unwrap().0.iter().copied().map(Hpa).collect()
    }

    pub fn write(&self, address: u64, entry: u64) {
        self.entry(address).unwrap().store(entry, Ordering::Release);
    }

    /// What is in tables that were given back, but for zeroes.
    pub fn dead_entries(&self) -> BTreeSet<u64> {
        let (_, dead) = &*self.live.lock().unwrap();
        let frames = dead.iter().map(|table| self.frames[((table - BASE) / FRAME) as usize].get().unwrap());
        let entries = frames.flat_map(|frame| frame.iter().map(|entry| entry.load(Ordering::Acquire)));
        entries.filter(|&entry| entry != 0).collect()
    }

    fn entry(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        let absent = MemoryError::Absent { address };
        let number = address.checked_sub(BASE).ok_or(absent)? / FRAME;
        if !self.grace && !self.live.lock().unwrap().0.contains(&(address & !(FRAME - 1))) {
            return Err(absent);
        }
        let frame = self.frames.get(number as usize).and_then(OnceLock::get).ok_or(absent)?;
        Ok(&frame[(address % FRAME / 8) as usize])
    }
}

impl PhysMemory for Arena {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        Ok(self.entry(address)?.load(Ordering::Acquire))
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let entry = self.entry(address)?;
        if !self.grace
            && let Some((_, bits)) = self.mark.lock().unwrap().take_if(|(at, _)| *at == address)
        {
            entry.fetch_or(bits, Ordering::AcqRel);
        }
        Ok(entry.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire).is_ok())
    }
}
