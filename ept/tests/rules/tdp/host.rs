//! A host, slots and an MMU over them, for the tests of the fault path.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ept::mmu::{
    FaultOutcome, HostFault, HostFrame, HostFrames, Memslot, Memslots, SlotLookup, SpteBits, Stats, Tdp,
    TdpOptions, Zapped,
};
use ept::{
    Access, Ept, EptCaps, Flags, Format, Ia32e, Leaf, Levels, Mapping, MaxPhyAddr, MemoryError, PhysMemory,
    Rights, translate,
};
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};

use super::arena::Arena;

pub const K4: u64 = 0x1000;
pub const M2: u64 = 0x20_0000;
pub const G1: u64 = 0x4000_0000;
pub const WIDTH: MaxPhyAddr = MaxPhyAddr::new(46).unwrap();

/// A host with stretches of mappings, each of one page size.
pub struct Host {
    pub tables: Arena,
    pub mapped: Vec<HostMapping>,
    /// Gives read-only frames even for writes, against the contract.
    pub lenient: bool,
    /// How often it was asked for a frame.
    pub asked: AtomicU64,
}

#[derive(Clone, Copy)]
pub struct HostMapping {
    pub hva: u64,
    pub bytes: u64,
    pub hpa: u64,
    pub size: PageSize,
    pub writable: bool,
}

impl PhysMemory for Host {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.tables.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.tables.compare_exchange(address, current, new)
    }
}

impl HostFrames for Host {
    fn host_frame(&self, hva: Hva, write: bool) -> Result<HostFrame, HostFault> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let inside = |mapping: &&HostMapping| (mapping.hva..mapping.hva + mapping.bytes).contains(&hva.raw());
        let found = self.mapped.iter().find(inside).ok_or(HostFault::Unmapped)?;
        if write && !found.writable && !self.lenient {
            return Err(HostFault::Unmapped);
        }
        let hpa = Hpa(found.hpa + (hva.raw() - found.hva)).align_down(PageSize::Size4K);
        Ok(HostFrame { hpa, size: found.size, writable: found.writable })
    }

    fn allocate_table(&self) -> Option<u64> {
        self.tables.allocate()
    }

    fn free_table(&self, frame: u64) {
        self.tables.free(frame);
    }
}

#[derive(Default)]
pub struct Slots {
    pub slots: Vec<Memslot>,
    pub dirty: Mutex<Vec<Gpa>>,
    /// All of them are about to go.
    pub invalid: bool,
    pub generation: Option<u64>,
}

impl Memslots for Slots {
    fn slot(&self, gpa: Gpa) -> SlotLookup {
        match self.slots.iter().copied().find(|slot| slot.hva_of(gpa).is_some()) {
            Some(_) if self.invalid => SlotLookup::Invalid,
            slot => slot.into(),
        }
    }
    fn mark_page_dirty(&self, gpa: Gpa) {
        self.dirty.lock().unwrap().push(gpa);
    }
    fn generation(&self) -> Option<u64> {
        self.generation
    }
}

pub fn ept_format(flags: bool, caps: EptCaps) -> Format {
    Format::ept(Ept { accessed_dirty: flags, ..Ept::new(Levels::Four, caps, WIDTH) })
}

pub fn npt(levels: Levels) -> Format {
    Format::npt(Ia32e::new(levels, WIDTH))
}

pub struct World {
    pub host: Host,
    pub slots: Slots,
    pub tdp: Tdp,
}

/// One slot of 8 MiB at 2 MiB, at HVA 1 GiB, backed by host pages of `size` at HPA 4 GiB.
pub fn world(size: PageSize) -> World {
    let slot = Memslot { base: Gpa(M2), bytes: 4 * M2, hva: Hva(G1), readonly: false, log_dirty: false };
    let mapping = HostMapping { hva: G1, bytes: 4 * M2, hpa: 4 * G1, size, writable: true };
    World::new(ept_format(true, EptCaps::all()), slot, mapping)
}

/// The same with these options.
pub fn world_with(size: PageSize, options: TdpOptions) -> World {
    let World { host, slots, tdp } = world(size);
    tdp.free(&host).unwrap();
    let tdp = Tdp::new(ept_format(true, EptCaps::all()), options, &host).unwrap();
    World { host, slots, tdp }
}

impl World {
    pub fn new(format: Format, slot: Memslot, mapping: HostMapping) -> Self {
        Self::with(format, TdpOptions::default(), slot, mapping)
    }

    pub fn with(format: Format, options: TdpOptions, slot: Memslot, mapping: HostMapping) -> Self {
        let host =
            Host { tables: Arena::new(), mapped: vec![mapping], lenient: false, asked: AtomicU64::new(0) };
        let tdp = Tdp::new(format, options, &host).unwrap();
        Self { host, slots: Slots { slots: vec![slot], ..Slots::default() }, tdp }
    }

    pub fn fault(&self, gpa: u64, access: Access) -> FaultOutcome {
        self.tdp.fault(Gpa(gpa), access, &self.slots, &self.host).unwrap()
    }

    /// Writes to each page of the first slot, faulting where a processor would.
    pub fn touch_all(&self) {
        let slot = self.slots.slots[0];
        for gpa in (slot.base.raw()..slot.base.raw() + slot.bytes).step_by(K4 as usize) {
            if translate(&self.host, self.tdp.paging(), gpa, Access::WRITE, Flags::Set).is_err() {
                self.fault(gpa, Access::WRITE);
            }
        }
    }

    /// What a processor does: walks, and faults until the tables allow the access; `Err` if they never will.
    pub fn access(&self, gpa: u64, access: Access) -> Result<Leaf, FaultOutcome> {
        loop {
            match translate(&self.host, self.tdp.paging(), gpa, access, Flags::Set) {
                Ok(leaf) => return Ok(leaf),
                Err(why) => match self.tdp.exit(Gpa(gpa), why, &self.slots, &self.host).unwrap() {
                    FaultOutcome::Fixed { .. } => {}
                    outcome => return Err(outcome),
                },
            }
        }
    }

    /// The log that was marked by faults, in order.
    pub fn dirty(&self) -> Vec<u64> {
        self.slots.dirty.lock().unwrap().drain(..).map(Gpa::raw).collect()
    }

    /// The first slot's flags have changed.
    pub fn set_logging(&mut self, on: bool, initially_set: bool) -> Zapped {
        self.slots.slots[0].log_dirty = on;
        self.tdp.set_logging(&self.slots.slots[0], initially_set, &self.host).unwrap()
    }

    pub fn leaves(&self) -> Vec<Mapping> {
        self.tdp.leaves(&self.host).collect()
    }

    pub fn leaf(&self, gpa: u64) -> Mapping {
        *self.leaves().iter().find(|leaf| leaf.address == gpa).unwrap()
    }

    pub fn zap(&mut self, first: u64, bytes: u64) -> Zapped {
        self.tdp.zap(AddrRange::new(Gpa(first), bytes.into()).unwrap(), &self.host).unwrap()
    }

    /// Leaves of 4K, 2M and 1G, by the counters, after checking everything that must hold at rest.
    pub fn sizes(&self) -> [u64; 3] {
        let Stats { pages_4k, pages_2m, pages_1g, .. } = self.tdp.stats();
        let counted = [pages_4k, pages_2m, pages_1g];
        let listed =
            PageSize::ALL.map(|size| self.leaves().iter().filter(|leaf| leaf.size == size).count() as u64);
        assert_eq!(counted, listed, "counters and tables");
        let pages = self.tdp.pages(&self.host).unwrap();
        let mut tables: Vec<_> = pages.iter().map(|page| page.table).collect();
        tables.sort_unstable();
        assert_eq!(self.host.tables.live(), tables, "frames and pages");
        assert_eq!(self.tdp.table_bytes(), tables.len() as u64 * K4);
        let bits = SpteBits::of(self.tdp.paging().format.kind());
        for leaf in self.leaves() {
            let SlotLookup::Slot(slot) = self.slots.slot(Gpa(leaf.address)) else {
                panic!("a leaf outside slots")
            };
            let entry = leaf.step.entry;
            let hva = slot.hva_of(Gpa(leaf.address)).unwrap();
            let mapping = self.host.mapped.iter().find(|at| (at.hva..at.hva + at.bytes).contains(&hva.raw()));
            let mapping = mapping.unwrap();
            assert_eq!(leaf.frame, mapping.hpa + (hva.raw() - mapping.hva), "{leaf:x?}");
            // Rule S1.
            let write = leaf.rights.contains(Rights::WRITE);
            assert!(!write || entry & bits.mmu_writable != 0, "{leaf:x?}");
            assert!(entry & bits.mmu_writable == 0 || entry & bits.host_writable != 0, "{leaf:x?}");
            assert!(bits.is_present(entry));
        }
        counted
    }
}

pub fn range(first: u64, bytes: u64) -> AddrRange<Gpa> {
    AddrRange::new(Gpa(first), bytes.into()).unwrap()
}

/// What has changed, so that processors must be flushed.
pub fn flushed(leaves: u64, tables: u64) -> Zapped {
    Zapped { leaves, tables, flush: true }
}
