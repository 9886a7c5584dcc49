//! Faults that run beside each other, under a lock that zaps take alone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex, RwLock};

use ept::mmu::{FaultOutcome, HostFrame, HostFrames, Memslot, Tdp, TdpOptions};
use ept::mmu::{HostFault, Memslots, SlotLookup};
use ept::{Access, EptCaps, Flags, Levels, MemoryError, PhysMemory, translate};
use memory_model::{Gpa, Hpa, Hva, PageSize};

use super::arena::Arena;
use super::host::{G1, K4, M2, ept_format, npt, range};

const THREADS: u64 = 8;
const PAGES: u64 = 4 * 512;
const FROZEN: u64 = 1 << 63 | 0x5a0;

/// A host whose pages can grow and move while others look.
struct Host {
    tables: Arena,
    /// By 2 MiB: the frame's number, and whether it is huge.
    chunks: Vec<AtomicU64>,
    /// Who is about to exchange this entry waits twice: others do something in between.
    pause: Mutex<Option<(u64, Arc<Barrier>)>>,
}

impl Host {
    fn new() -> Self {
        let mut tables = Arena::new();
        tables.grace = true;
        let chunks = (0..4).map(|chunk| AtomicU64::new((chunk + 8) << 1)).collect();
        Self { tables, chunks, pause: Mutex::new(None) }
    }

    fn frame(&self, page: u64) -> HostFrame {
        let chunk = self.chunks[(page / 512) as usize].load(Relaxed);
        let size = if chunk & 1 == 1 { PageSize::Size2M } else { PageSize::Size4K };
        HostFrame { hpa: Hpa((chunk >> 1) * M2 + page % 512 * K4), size, writable: true }
    }
}

impl PhysMemory for Host {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.tables.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let pause = self.pause.lock().unwrap().take_if(|(at, _)| *at == address);
        if let Some((_, barrier)) = pause {
            barrier.wait();
            barrier.wait();
        }
        self.tables.compare_exchange(address, current, new)
    }
}

impl HostFrames for Host {
    fn host_frame(&self, hva: Hva, _: bool) -> Result<HostFrame, HostFault> {
        Ok(self.frame((hva.raw() - G1) / K4))
    }
    fn allocate_table(&self) -> Option<u64> {
        self.tables.allocate()
    }
    fn free_table(&self, frame: u64) {
        self.tables.free(frame);
    }
}

#[derive(Default)]
struct Slots {
    logs: bool,
    dirty: Mutex<BTreeSet<u64>>,
}

const SLOT: Memslot =
    Memslot { base: Gpa(M2), bytes: PAGES * K4, hva: Hva(G1), readonly: false, log_dirty: false };

impl Memslots for Slots {
    fn slot(&self, gpa: Gpa) -> SlotLookup {
        SlotLookup::from(SLOT.hva_of(gpa).map(|_| Memslot { log_dirty: self.logs, ..SLOT }))
    }
    fn mark_page_dirty(&self, gpa: Gpa) {
        self.dirty.lock().unwrap().insert(gpa.align_down(PageSize::Size4K).raw());
    }
}

/// All that must hold when nobody is at it.
fn check(tdp: &Tdp, host: &Host) {
    let stats = tdp.stats();
    let leaves: Vec<_> = tdp.leaves(host).collect();
    for leaf in &leaves {
        assert_eq!(leaf.frame, host.frame((leaf.address - M2) / K4).hpa.raw(), "{leaf:x?}");
    }
    let count = |size| leaves.iter().filter(|leaf| leaf.size == size).count() as u64;
    assert_eq!((stats.pages_4k, stats.pages_2m), (count(PageSize::Size4K), count(PageSize::Size2M)));
    let mut tables: Vec<_> = tdp.pages(host).unwrap().iter().map(|page| page.table).collect();
    tables.sort_unstable();
    assert_eq!(host.tables.live(), tables, "a table is lost, or used twice");
    assert_eq!(tdp.table_bytes(), tables.len() as u64 * K4);
}

/// Nothing was put into a table after it was given back; and no table was given back that had never been linked.
fn check_freed(host: &Host) {
    let dead = host.tables.dead_entries();
    assert!(dead.is_subset(&BTreeSet::from([FROZEN])), "{:x?}", dead.first());
}

/// Does `work` in eight threads, which begin together.
fn race(work: impl Fn(u64) + Sync) {
    let start = Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (work, start) = (&work, &start);
            scope.spawn(move || {
                start.wait();
                work(thread);
            });
        }
    });
}

fn options() -> TdpOptions {
    TdpOptions::default()
}

#[test]
fn eight_processors_on_the_same_pages_make_one_mapping_of_one_frame() {
    for round in 0..20 {
        let host = Host::new();
        let tdp = Tdp::new(ept_format(round % 2 == 0, EptCaps::all()), options(), &host).unwrap();
        let fixed = AtomicU64::new(0);
        race(|_| {
            for page in 0..PAGES {
                let gpa = Gpa(M2 + page * K4);
                match tdp.fault(gpa, Access::WRITE, &Slots::default(), &host).unwrap() {
                    FaultOutcome::Fixed { .. } => _ = fixed.fetch_add(1, Relaxed),
                    outcome => assert_eq!(outcome, FaultOutcome::Spurious),
                }
            }
        });
        let stats = tdp.stats();
        assert_eq!((fixed.into_inner(), stats.pages_4k), (PAGES, PAGES));
        assert_eq!((stats.pf_taken, stats.pf_fixed), (PAGES * THREADS, PAGES));
        assert_eq!(stats.pf_spurious, PAGES * (THREADS - 1));
        check(&tdp, &host);
        tdp.free(&host).unwrap();
        assert!(host.tables.live().is_empty());
    }
}

#[test]
fn eight_processors_on_disjoint_pages_share_the_tables() {
    let host = Host::new();
    let tdp = Tdp::new(npt(Levels::Five), options(), &host).unwrap();
    race(|thread| {
        for page in (thread..PAGES).step_by(THREADS as usize) {
            let outcome = tdp.fault(Gpa(M2 + page * K4), Access::WRITE, &Slots::default(), &host);
            assert_eq!(outcome, Ok(FaultOutcome::Fixed { size: PageSize::Size4K }));
        }
    });
    assert_eq!((tdp.stats().pages_4k, tdp.stats().pf_fixed), (PAGES, PAGES));
    assert_eq!(tdp.table_bytes(), (4 + 4) * K4);
    check(&tdp, &host);
}

/// Half of the processors still see small pages where the others see a huge one: the table that goes is frozen first, so
/// that nothing is put into it afterwards.
#[test]
fn a_table_that_a_huge_page_replaces_takes_nothing_any_more() {
    for _ in 0..40 {
        let host = Host::new();
        let tdp = Tdp::new(ept_format(true, EptCaps::all()), options(), &host).unwrap();
        race(|thread| {
            for page in 0..PAGES {
                if thread == 0 && page % 512 == 256 {
                    host.chunks[(page / 512) as usize].fetch_or(1, Relaxed);
                }
                let gpa = Gpa(M2 + page * K4);
                let outcome = tdp.fault(gpa, Access::WRITE, &Slots::default(), &host).unwrap();
                assert!(
                    matches!(
                        outcome,
                        FaultOutcome::Fixed { .. } | FaultOutcome::Spurious | FaultOutcome::Retry
                    ),
                    "{outcome:?}"
                );
            }
        });
        check(&tdp, &host);
        check_freed(&host);
    }
}

/// The same, in the one order that matters: between a processor's look at an entry and its exchange, the table goes.
#[test]
fn a_leaf_on_its_way_into_a_table_that_goes_is_refused() {
    let host = Host::new();
    let tdp = Tdp::new(ept_format(true, EptCaps::all()), options(), &host).unwrap();
    let slots = Slots::default();
    let fault = |page| tdp.fault(Gpa(M2 + page * K4), Access::WRITE, &slots, &host).unwrap();
    fault(0);
    let table = tdp.leaves(&host).next().unwrap().step.table;
    let barrier = Arc::new(Barrier::new(2));
    *host.pause.lock().unwrap() = Some((table + 5 * 8, barrier.clone()));
    std::thread::scope(|scope| {
        let late = scope.spawn(|| fault(5));
        barrier.wait();
        host.chunks[0].fetch_or(1, Relaxed);
        assert_eq!(fault(7), FaultOutcome::Fixed { size: PageSize::Size2M });
        barrier.wait();
        assert_eq!(late.join().unwrap(), FaultOutcome::Retry);
    });
    check(&tdp, &host);
    check_freed(&host);
    assert_eq!((tdp.stats().pages_4k, tdp.stats().pages_2m), (0, 1));
}

/// Writes, fetches and ageing race with splits of huge pages under a log.
#[test]
fn no_write_is_lost_to_the_log_while_huge_pages_are_split() {
    for round in 0..20 {
        let host = Host::new();
        host.chunks.iter().for_each(|chunk| _ = chunk.fetch_or(1, Relaxed));
        let flags = round % 2 == 0;
        let mut tdp = Tdp::new(ept_format(flags, EptCaps::all()), options(), &host).unwrap();
        for chunk in 0..4 {
            tdp.fault(Gpa(M2 + chunk * M2), Access::WRITE, &Slots::default(), &host).unwrap();
        }
        let slots = Slots { logs: true, ..Slots::default() };
        tdp.set_logging(&Memslot { log_dirty: true, ..SLOT }, false, &host).unwrap();
        race(|thread| {
            for page in (0..PAGES).step_by(3) {
                let gpa = M2 + page * K4;
                if thread == 7 {
                    tdp.age(range(gpa, 64 * K4), &host).unwrap();
                    continue;
                }
                let access = if thread < 5 { Access::WRITE } else { Access::FETCH };
                // A processor: each access is made again until the tables allow it.
                while let Err(why) = translate(&host, tdp.paging(), gpa, access, Flags::Set) {
                    tdp.exit(Gpa(gpa), why, &slots, &host).unwrap();
                }
            }
        });
        let written: BTreeSet<u64> = (0..PAGES).step_by(3).map(|page| M2 + page * K4).collect();
        assert_eq!(*slots.dirty.lock().unwrap(), written);
        assert_eq!((tdp.stats().pages_4k, tdp.stats().pages_2m), (PAGES, 0));
        // Hardware sees what is aged only with A.
        if flags {
            check(&tdp, &host);
        }
        tdp.free(&host).unwrap();
        assert!(host.tables.live().is_empty());
    }
}

/// The host moves pages: as Linux does it, with the start and the end of an invalidation around each.
#[test]
fn n3_processors_fault_while_the_host_moves_pages() {
    let host = Host::new();
    let tdp = RwLock::new(Tdp::new(ept_format(true, EptCaps::all()), options(), &host).unwrap());
    let next = AtomicU64::new(100);
    race(|thread| {
        for turn in 0..1500 {
            let page = (turn * 7 + thread * 251) % PAGES;
            let gpa = Gpa(M2 + page * K4);
            if thread != 0 {
                let seq = tdp.read().unwrap().invalidations().seq();
                let fault = ept::mmu::PageFault::of_tdp(gpa, Access::WRITE);
                // The host is asked without the lock: it may move the page right then.
                let resolved = fault.resolve(seq, &Slots::default(), &host);
                let tdp = tdp.read().unwrap();
                let outcome = tdp.map(&fault, resolved, &Slots::default(), &host).unwrap();
                assert!(!matches!(outcome, FaultOutcome::HostFault { .. } | FaultOutcome::Mmio { .. }));
                continue;
            }
            let chunk = page / 512;
            let moved = range(M2 + chunk * M2, M2);
            let _ = tdp.write().unwrap().invalidate_begin(moved, &host).unwrap();
            let huge = turn % 3 / 2;
            host.chunks[chunk as usize].store(next.fetch_add(1, Relaxed) << 1 | huge, Relaxed);
            tdp.write().unwrap().invalidate_end();
            check(&tdp.write().unwrap(), &host);
        }
    });
    let mut tdp = tdp.into_inner().unwrap();
    check(&tdp, &host);
    check_freed(&host);
    tdp.zap_all(&host).unwrap();
    assert_eq!((tdp.stats().pages_4k, tdp.stats().pages_2m, tdp.table_bytes()), (0, 0, K4));
}
