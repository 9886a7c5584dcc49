//! The TDP MMU: guest-physical to host-physical, built on faults (`arch/x86/kvm/mmu/tdp_mmu.c`).
//!
//! | file | what |
//! |---|---|
//! | `fault` | an exit, step by step; the fast page fault; MMIO entries |
//! | `map` | a frame goes into the tree, beside other processors that do the same |
//! | `zap` | slots and host pages go |
//! | `log` | dirty logging: by write protection, or by D |
//! | `age` | access tracking |
//! | `reclaim` | a limit on tables, and what gives way |
//! | `tables`, `table`, `page` | tables allocated, freed, listed |

mod age;
mod counters;
mod fault;
mod log;
mod map;
mod page;
mod reclaim;
mod table;
mod tables;
mod zap;

use alloc::collections::BTreeSet;
use core::sync::atomic::{AtomicU64, Ordering};

use memory_model::{Gpa, PageSize};

use super::mmio::MmioMaker;
use super::spte::{SpteMaker, Target};
use super::{HostFrames, Invalidations, Stats};
use crate::error::Error;
use crate::format::Format;
use crate::mappings::{Mapping, mappings};
use crate::paging::Paging;
use crate::phys::PhysMemory;
pub use page::TdpPage;

use counters::{Count, Counters};
use table::{Spot, Table};

/// What is up to whoever makes a [`Tdp`]: everything is off unless asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TdpOptions {
    /// Accesses to holes are remembered in the tables (rules I1, I2), if the format has a way to.
    pub mmio_caching: bool,
    /// No large page is executable (rule L5).
    pub nx_huge_pages: bool,
    /// Large pages are split when a log starts, not by the first write to each (rule D1).
    pub eager_page_split: bool,
    /// Writes are logged by D, as page-modification logging does it, not by write protection. Counts only in formats
    /// with A and D.
    pub dirty_bits: bool,
    /// The most tables there may be, the root among them; at least what one page takes. KVM has no limit here, and its
    /// own (`n_max_mmu_pages`) for shadow pages alone.
    pub max_tables: Option<u64>,
}

/// The second-level tables of one VM.
///
/// It stands in a lock of its owner, as KVM's MMU in `mmu_lock`. Faults take it shared: methods with `&self` may run at
/// once, in as many threads as there are processors. What takes rights or mappings back has `&mut self`.
#[derive(Debug)]
pub struct Tdp {
    paging: Paging,
    sptes: SpteMaker,
    /// `None`: no MMIO caching.
    mmio: Option<MmioMaker>,
    options: TdpOptions,
    invalidations: Invalidations,
    counters: Counters,
    /// How many tables there are.
    tables: AtomicU64,
    /// Pages that were zapped with D set, before the log was told.
    dirty: BTreeSet<Gpa>,
    /// Where [`reclaim`](Self::reclaim) goes on.
    hand: Gpa,
}

impl Tdp {
    /// An MMU with an empty root. `format` is that of EPT or NPT.
    pub fn new(format: Format, options: TdpOptions, host: &impl HostFrames) -> Result<Self, Error> {
        let mut tdp = Self {
            paging: Paging::new(format, 0),
            sptes: SpteMaker::new(format),
            mmio: if options.mmio_caching { MmioMaker::new(&format) } else { None },
            options,
            invalidations: Invalidations::default(),
            counters: Counters::default(),
            tables: AtomicU64::new(0),
            dirty: BTreeSet::new(),
            hand: Gpa(0),
        };
        (tdp.paging.root, _) = tdp.allocate(host)?;
        Ok(tdp)
    }

    /// The root and its format: what walkers need.
    pub fn paging(&self) -> &Paging {
        &self.paging
    }

    /// The host's invalidations.
    pub fn invalidations(&self) -> &Invalidations {
        &self.invalidations
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        self.counters.stats()
    }

    /// Bytes of all tables, the root among them.
    pub fn table_bytes(&self) -> u64 {
        self.tables.load(Ordering::Relaxed) * PageSize::Size4K.bytes()
    }

    /// All leaves that hardware sees: `address` is the GPA, `frame` the HPA.
    pub fn leaves<'a, M: PhysMemory>(&'a self, memory: &'a M) -> impl Iterator<Item = Mapping> + 'a {
        mappings(memory, &self.paging)
    }

    fn root(&self) -> Table {
        Table { frame: self.paging.root, level: self.paging.format.levels(), base: 0 }
    }

    fn read(&self, table: Table, index: u16, memory: &impl PhysMemory) -> Result<Spot, Error> {
        Ok(Spot { table, index, spte: memory.read_entry(table.entry_address(index))? })
    }

    /// Replaces an entry and keeps the counters in step; `false` if it is no longer what was read.
    fn exchange(&self, spot: Spot, new: u64, memory: &impl PhysMemory) -> Result<bool, Error> {
        if !memory.compare_exchange(spot.address(), spot.spte, new)? {
            return Ok(false);
        }
        let level = spot.table.level;
        match (self.sptes.target(level, spot.spte), self.sptes.target(level, new)) {
            (Target::Leaf(..), Target::Leaf(..)) => {}
            (Target::Leaf(_, size), _) => self.counters.sub(spot.gpa(), Count::pages(size), 1),
            (_, Target::Leaf(_, size)) => self.counters.add(spot.gpa(), Count::pages(size), 1),
            _ => {}
        }
        Ok(true)
    }

    /// Changes an entry as `new` says, again if hardware or another processor changes it meanwhile. Returns it as it was
    /// just before, or `None` if it is to stay as it is.
    fn change(
        &self,
        mut spot: Spot,
        memory: &impl PhysMemory,
        new: impl Fn(u64) -> u64,
    ) -> Result<Option<u64>, Error> {
        loop {
            let to = new(spot.spte);
            if to == spot.spte {
                return Ok(None);
            }
            if self.exchange(spot, to, memory)? {
                return Ok(Some(spot.spte));
            }
            spot = self.read(spot.table, spot.index, memory)?;
        }
    }

    /// Whether a log is kept by D.
    fn logs_by_dirty_bits(&self) -> bool {
        self.options.dirty_bits && self.sptes.dirty != 0
    }
}
