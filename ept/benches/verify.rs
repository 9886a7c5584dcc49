//! What a verification costs: a guest of 64 GiB on two threads, beside a sequential read of the same bytes.

use std::hint::black_box;
use std::time::{Duration, Instant};

use ept::mmu::Memslot;
use ept::verify::{DirtyLog, Guest, HostMap, HostPage, HostPages, Policy, Report, Slot, Verifier};
use ept::{EptCaps, Eptp, Kind, Levels, MaxPhyAddr, MemoryError, Paging, PhysMemory};
use memory_model::{AddrRange, Gpa, Hpa, Hva};

const PAGE: u64 = 0x1000;
const GUEST: u64 = 64 << 30;
const THREADS: usize = 2;
const ROUNDS: usize = 15;
/// The slot's place in the process, and the tables' and the guest's in the host.
const HVA: u64 = 0x7f00_0000_0000;
const TABLES: u64 = 1 << 30;
const RAM: u64 = 2 << 30;
const HOST: u64 = 128 << 30;

fn main() {
    println!("64 GiB of guest, {THREADS} threads, median of {ROUNDS}\n");
    println!(
        "{:<38} {:>11} {:>11} {:>10} {:>7} {:>7} {:>8}",
        "", "verify", "leaf, core", "bytes", "GB/s", "read", "share"
    );
    let in_a_row = |page: u64| RAM + page * PAGE;
    // An odd factor: each frame once, and no two neighbours in the guest are neighbours in the host.
    let scattered = |page: u64| RAM + page.wrapping_mul(0x9e_3779) % (GUEST / PAGE) * PAGE;
    // As a host hands out frames after a while: in runs of 32 pages.
    let runs = |page: u64| {
        RAM + (page / 32).wrapping_mul(0x9e_3779) % (GUEST / PAGE / 32) * 32 * PAGE + page % 32 * PAGE
    };
    let small = Tables::of_4k(in_a_row);
    row("4K, frames in a row, host in rows", &small, &Row, 0);
    with_pages("4K, frames in a row, host page by page", &small, in_a_row);
    logged("4K, writes logged, all in the log", &small);
    drop(small);
    with_pages("4K, frames in runs of 32", &Tables::of_4k(runs), runs);
    with_pages("4K, frames scattered", &Tables::of_4k(scattered), scattered);
    row("2M, host in rows", &Tables::of_2m(), &Row, 0);
}

/// Tables in one piece of memory, read-only from now on.
struct Tables {
    entries: Vec<u64>,
    leaves: [u64; 3],
}

impl PhysMemory for Tables {
    #[inline]
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        let entry = address.checked_sub(TABLES).and_then(|at| self.entries.get((at / 8) as usize));
        entry.copied().ok_or(MemoryError::Absent { address })
    }

    #[inline]
    fn read_table(&self, table: u64, entries: &mut [u64; 512]) -> Result<(), MemoryError> {
        let absent = MemoryError::Absent { address: table };
        let first = table.checked_sub(TABLES).ok_or(absent)? as usize / 8;
        entries.copy_from_slice(self.entries.get(first..first + 512).ok_or(absent)?);
        Ok(())
    }

    fn compare_exchange(&self, address: u64, _: u64, _: u64) -> Result<bool, MemoryError> {
        Err(MemoryError::ReadOnly { address })
    }
}

impl Tables {
    /// A PML4, a PDPT, a PD for each GiB and, with 4K pages, a page table for each 2 MiB.
    fn of_4k(frame: impl Fn(u64) -> u64) -> Self {
        let mut tables = Self::upper(|number| (TABLES + (66 + number) * PAGE) | 0x107);
        tables.entries.extend((0..GUEST / PAGE).map(|page| frame(page) | 0x377));
        tables.leaves = [GUEST / PAGE, 0, 0];
        tables
    }

    fn of_2m() -> Self {
        Self { leaves: [0, GUEST >> 21, 0], ..Self::upper(|number| (RAM + (number << 21)) | 0x3f7) }
    }

    fn upper(pde: impl Fn(u64) -> u64) -> Self {
        let mut entries = vec![0; 1024];
        entries[0] = (TABLES + PAGE) | 0x107;
        (0..64).for_each(|number| entries[512 + number as usize] = (TABLES + (2 + number) * PAGE) | 0x107);
        entries.extend((0..64 * 512).map(pde));
        Self { entries, leaves: [0; 3] }
    }
}

/// A host whose frames follow each other.
struct Row;

impl HostMap for Row {
    fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
        let first = RAM + (hva.raw() - HVA);
        for (index, page) in (0..).zip(pages) {
            *page = HostPage::at(Hpa(first + index * PAGE));
        }
    }
}

fn with_pages(name: &str, tables: &Tables, frame: impl Fn(u64) -> u64) {
    let pages: Vec<_> = (0..GUEST / PAGE).map(|page| HostPage::at(Hpa(frame(page)))).collect();
    row(name, tables, &HostPages { hva: Hva(HVA), pages: &pages }, pages.len() * 8);
}

/// As during a migration: each leaf is looked up in the log.
fn logged(name: &str, tables: &Tables) {
    let log = vec![u64::MAX; (GUEST / PAGE / 64) as usize];
    let memslot = Memslot { base: Gpa(0), bytes: GUEST, hva: Hva(HVA), readonly: false, log_dirty: true };
    row_of(name, tables, Slot { memslot, log: DirtyLog::Bitmap(&log) }, &Row, 0);
}

fn row(name: &str, tables: &Tables, host: &dyn HostMap, more: usize) {
    let memslot = Memslot { base: Gpa(0), bytes: GUEST, hva: Hva(HVA), readonly: false, log_dirty: false };
    row_of(name, tables, memslot.into(), host, more);
}

/// `more`: bytes of the host's own that are read.
fn row_of(name: &str, tables: &Tables, slot: Slot<'_>, host: &dyn HostMap, more: usize) {
    let (caps, width) = (EptCaps::all(), MaxPhyAddr::new(46).unwrap());
    let eptp = Eptp::for_root(TABLES, Levels::Four, true, caps, width).unwrap();
    let (slots, roots) = ([slot], [Paging::ept(eptp, caps, width)]);
    let guest = Guest {
        process: 0,
        roots: &roots,
        shadows: &[],
        slots: &slots,
        host,
        policy: Policy::strict(Kind::Ept),
        leaves: Some(tables.leaves),
        tables: None,
        caches: None,
    };
    let ram = AddrRange::new(Hpa(0), HOST.into()).unwrap();
    let array = vec![1u64; more / 8];
    let (mut verified, mut read) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let report = verify(tables, &[guest], ram);
        verified.push(start.elapsed());
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.coverage.frames, GUEST / PAGE);
        let start = Instant::now();
        black_box(sum(&tables.entries) ^ sum(&array));
        read.push(start.elapsed());
    }
    let bytes = tables.entries.len() * 8 + more;
    let (verified, read) = (median(verified), median(read));
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    let leaves = tables.leaves.iter().sum::<u64>();
    let (milliseconds, per_leaf) =
        (verified.as_secs_f64() * 1e3, verified.as_secs_f64() * 1e9 / leaves as f64);
    print!("{name:<38} {milliseconds:>8.2} ms {:>8.2} ns", per_leaf * THREADS as f64);
    match bytes >> 20 {
        0 => println!(),
        size => println!(
            " {size:>6} MiB {:>7.1} {:>7.1} {:>6.0} %",
            rate(verified),
            rate(read),
            rate(verified) * 100.0 / rate(read)
        ),
    }
}

fn verify(tables: &Tables, guests: &[Guest<'_>], ram: AddrRange<Hpa>) -> Report {
    let verifier = Verifier::new(tables, guests, ram, 100).unwrap();
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..THREADS).map(|_| scope.spawn(|| verifier.work())).collect();
        let own = verifier.work();
        verifier.report(others.into_iter().map(|other| other.join().unwrap()).chain([own]))
    })
}

/// Reads all of it, each thread a half.
fn sum(words: &[u64]) -> u64 {
    let part = |words: &[u64]| words.iter().fold(0, |sum: u64, &word| sum.wrapping_add(word));
    std::thread::scope(|scope| {
        let parts: Vec<_> = words
            .chunks(words.len().div_ceil(THREADS).max(1))
            .map(|words| scope.spawn(move || part(words)))
            .collect();
        parts.into_iter().fold(0, |sum, part| sum ^ part.join().unwrap())
    })
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
