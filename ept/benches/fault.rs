//! Violations and page faults handled, each from an empty page of a slot to a mapped 4 KiB leaf, over a host that has
//! every frame ready. `cargo bench -p ept --bench fault`.

mod ram;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use ept::mmu::{
    FaultOutcome, HostFault, HostFrame, HostFrames, Memslot, Memslots, Shadow, ShadowOptions, SlotLookup,
    Tdp, TdpOptions,
};
use ept::{
    Access, Controls, Ept, EptCaps, Flags, Format, Ia32e, Levels, MaxPhyAddr, MemoryError, Paging,
    PhysMemory, translate,
};
use memory_model::{Gpa, Hpa, Hva, PageSize};

use ram::{FRAME, Ram, Random};

const ROUNDS: usize = 31;
/// 1 GiB.
const PAGES: u64 = 1 << 18;
/// Tables of the MMU end here in RAM, and the frames of the guest's tables begin.
const GUEST_TABLES: u64 = PAGES * 8 + 64 * FRAME;
/// A PT for each 512 pages, one PD, one PDPT and the root.
const GUEST_TABLE_BYTES: u64 = PAGES * 8 + 3 * FRAME;
const WIDTH: MaxPhyAddr = MaxPhyAddr::new(46).unwrap();

fn main() {
    let host = Host {
        ram: Ram::new(GUEST_TABLES + GUEST_TABLE_BYTES),
        next: AtomicU64::new(FRAME),
        tells: AtomicBool::new(false),
    };
    let rows: Vec<u64> = (0..PAGES).collect();
    let shuffled = shuffled();

    println!("\n{:<52} {:>10} {:>10}", "violations, empty page to 4K leaf", "each", "target");
    for (name, pages) in [("in a row", &rows), ("in random order", &shuffled)] {
        violations(&host, name, pages);
    }

    println!("\n{:<52} {:>10} {:>10}", "disjoint memory, time against one thread's", "ratio", "target");
    for threads in [2, 8] {
        // In turn, so that a noisy machine strikes both alike.
        let alone = median((0..ROUNDS).map(|_| arithmetic(threads) / arithmetic(1)));
        let ratio = median((0..ROUNDS).map(|_| tdp(&host, &rows, threads) / tdp(&host, &rows, 1)));
        println!("{:<52} {alone:>9.2}x {:>10}", format!("{threads} threads of arithmetic: the machine"), "-");
        println!("{:<52} {ratio:>9.2}x {:>10}", format!("tdp: {threads} threads"), "the same");
    }
}

/// The three ways in turn, so that a noisy machine strikes all alike.
fn violations(host: &Host, name: &str, pages: &[u64]) {
    let rounds: Vec<_> = (0..ROUNDS)
        .map(|_| [tdp(host, pages, 1), shadow(host, pages, ACCESSED | DIRTY), shadow(host, pages, 0)])
        .collect();
    let each = |way: usize| median(rounds.iter().map(|round| round[way])) / PAGES as f64 * 1e9;
    let ratio = |way: usize| median(rounds.iter().map(|round| round[way] / round[0]));
    println!("{:<52} {:>7.1} ns {:>10}", format!("tdp: {name}"), each(0), "<= 250 ns");
    for (way, flags) in [(1, "the guest's A and D set"), (2, "A and D to set")] {
        println!("{:<52} {:>7.1} ns {:>10}", format!("shadow: {name}, {flags}"), each(way), "<= 500 ns");
        println!("{:<52} {:>9.2}x {:>10}", "  against tdp", ratio(way), "<= 2");
    }
    host.tells.store(true, Ordering::Relaxed);
    let ahead = median((0..ROUNDS).map(|_| shadow(host, pages, ACCESSED | DIRTY))) / PAGES as f64 * 1e9;
    host.tells.store(false, Ordering::Relaxed);
    println!("{:<52} {ahead:>7.1} ns {:>10}", format!("shadow: {name}, with what is mapped ahead"), "-");
}

/// The seconds of work that shares nothing, done by that many threads.
fn arithmetic(threads: u64) -> f64 {
    let work = || black_box((0..PAGES * 128 / threads).fold(1, |x: u64, n| black_box(x.wrapping_mul(n | 1))));
    let start = Instant::now();
    std::thread::scope(|scope| (0..threads).for_each(|_| _ = scope.spawn(work)));
    start.elapsed().as_secs_f64()
}

/// The seconds that `threads` need, each for its part of the pages.
fn tdp(host: &Host, pages: &[u64], threads: u64) -> f64 {
    host.forget();
    let ept = Ept { accessed_dirty: true, ..Ept::new(Levels::Four, EptCaps::all(), WIDTH) };
    let tdp = Tdp::new(Format::ept(ept), TdpOptions::default(), host).expect("room");
    let work = |part: &[u64]| {
        for page in part {
            let outcome = tdp.fault(Gpa(page * FRAME), Access::WRITE, &Slots, host);
            assert_eq!(outcome, Ok(FaultOutcome::Fixed { size: PageSize::Size4K }));
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        for part in pages.chunks(pages.len() / threads as usize) {
            scope.spawn(move || work(part));
        }
    });
    let time = start.elapsed();
    assert_eq!(tdp.stats().pages_4k, PAGES);
    time.as_secs_f64()
}

/// The seconds that the faults of a guest need whose 4-level tables map all pages where they lie, with those flags.
fn shadow(host: &Host, pages: &[u64], flags: u64) -> f64 {
    host.forget();
    let root = host.write_guest_tables(flags);
    let format = Format::ia32e(Ia32e::new(Levels::Four, WIDTH));
    let guest = Paging { controls: Controls::WP, ..Paging::new(format, root) };
    let mut shadow = Shadow::new(ShadowOptions { max_phy_addr: WIDTH, max_tables: 2 * pages.len() / 512 });
    let mut cpu = shadow.context(host).expect("room");
    shadow.load(&mut cpu, Some(&guest), &Slots, host).expect("room");
    let tells = host.tells.load(Ordering::Relaxed);
    let start = Instant::now();
    for page in pages {
        // A processor takes no fault on a page that was mapped ahead.
        if tells && translate(host, cpu.paging(), page * FRAME, Access::WRITE, Flags::Set).is_ok() {
            continue;
        }
        let outcome = shadow.fault(&mut cpu, page * FRAME, Access::WRITE, &Slots, host);
        assert_eq!(outcome, Ok(FaultOutcome::Fixed { size: PageSize::Size4K }));
    }
    let time = start.elapsed();
    assert_eq!(shadow.stats().pages_4k, PAGES);
    time.as_secs_f64()
}

fn shuffled() -> Vec<u64> {
    let (mut random, mut pages) = (Random::new(), (0..PAGES).collect::<Vec<_>>());
    for last in (1..pages.len()).rev() {
        pages.swap(last, random.below(last as u64 + 1) as usize);
    }
    pages
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A host whose frames lie as the HVAs do, those of the guest's tables in RAM. Tables of the MMU are given one after the other and never taken back.
struct Host {
    ram: Ram,
    next: AtomicU64,
    /// It says which pages are there before they are asked for.
    tells: AtomicBool,
}

impl Host {
    /// Takes all tables back, and clears them.
    fn forget(&self) {
        let used = self.next.swap(FRAME, Ordering::Relaxed) / 8;
        self.ram.cells[..used as usize].iter().for_each(|cell| cell.store(0, Ordering::Relaxed));
    }

    /// PTs, a PD, a PDPT and a root behind the guest's pages; where the root is.
    fn write_guest_tables(&self, flags: u64) -> u64 {
        let (pts, all) = (PAGES * FRAME, PRESENT | WRITE | USER | flags);
        let pd = pts + PAGES * 8;
        let entries = |targets: u64, count: u64| (0..count).map(move |n| (targets + n * FRAME) | all);
        let tables = [
            (pts, entries(0, PAGES)),
            (pd, entries(pts, PAGES / 512)),
            (pd + FRAME, entries(pd, 1)),
            (pd + 2 * FRAME, entries(pd + FRAME, 1)),
        ];
        for (table, entries) in tables {
            let first = (table - pts + GUEST_TABLES) / 8;
            for (cell, entry) in self.ram.cells[first as usize..].iter().zip(entries) {
                cell.store(entry, Ordering::Relaxed);
            }
        }
        pd + 2 * FRAME
    }
}

/// Bits of the guest's entries.
const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;

impl PhysMemory for Host {
    #[inline]
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.ram.read_entry(address)
    }

    #[inline]
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.ram.compare_exchange(address, current, new)
    }

    #[inline]
    fn write_entries(&self, address: u64, entries: &[u64]) -> Result<(), MemoryError> {
        self.ram.write_entries(address, entries)
    }
}

impl HostFrames for Host {
    fn host_frame(&self, hva: Hva, _: bool) -> Result<HostFrame, HostFault> {
        let offset = hva.align_down(PageSize::Size4K).raw() - (1 << 40);
        let hpa = match offset.checked_sub(PAGES * FRAME) {
            Some(table) => Hpa(GUEST_TABLES + table),
            None => Hpa(offset + (1 << 32)),
        };
        Ok(HostFrame { hpa, size: PageSize::Size4K, writable: true })
    }

    fn present_frame(&self, hva: Hva, write: bool) -> Option<HostFrame> {
        self.host_frame(hva, write).ok().filter(|_| self.tells.load(Ordering::Relaxed))
    }

    fn allocate_table(&self) -> Option<u64> {
        let table = self.next.fetch_add(FRAME, Ordering::Relaxed);
        (table + FRAME <= GUEST_TABLES).then_some(table)
    }

    fn free_table(&self, _: u64) {}
}

struct Slots;

impl Memslots for Slots {
    fn slot(&self, gpa: Gpa) -> SlotLookup {
        let bytes = PAGES * FRAME + GUEST_TABLE_BYTES;
        let slot = Memslot { base: Gpa(0), bytes, hva: Hva(1 << 40), readonly: false, log_dirty: false };
        SlotLookup::from(slot.hva_of(gpa).map(|_| slot))
    }

    fn mark_page_dirty(&self, _: Gpa) {}
}
