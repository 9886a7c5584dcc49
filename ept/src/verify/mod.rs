//! A verifier: are these second-level and shadow tables the ones that slots and host call for?
//!
//! [`Verifier`] takes the roots of one or more guests, their slots, and what the host has behind each HVA. It looks at
//! every entry of every table and lists everything that is wrong, by the numbered [`Invariant`]s: place, path, what was
//! expected and what was seen.
//!
//! ```text
//! roots ----[Verifier::new]----> tables, each once           7, 15
//! tables ---[Verifier::work]---> entries, in any number of threads   1 to 6, 8, 10, 11, 14
//! frames ---[Verifier::report]-> seen twice, tables mapped    8, 9, 12, 13
//! ```
//!
//! - Tables are read, never written, and each entry is judged by the value it had when it was read. They should be at
//!   rest but for the flags that hardware sets; a table whose pointers change meanwhile is reported as not checked.
//! - Entries may hold anything: cycles and tables linked a thousandfold take no longer than a tree, as each is followed
//!   where it is reached first.
//! - Memory is bounded: 64 bytes for each table (four times that for each part of the guest's tables that a shadow table
//!   stands for), a bit for each 4 KiB of the host's RAM (and two more for each thread), and as many findings as asked
//!   for. Their number is counted in full.
//! - What could not be checked is in [`Report::unchecked`]: never passed over as right.
//! - Leaves of shadow tables, keyed by linear address, are compared with the guest's own tables as they are ([`Shadow`]).
//! - What processors remember (13) is checked by [`Tlb::stale`](crate::tlb::Tlb::stale), if the caches are given.
//!
//! # Example
//!
//! ```
//! use ept::verify::{Guest, HostPage, HostPages, Input, Invariant, Policy, Verifier};
//! use ept::mmu::Memslot;
//! use ept::*;
//! use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};
//!
//! // A slot of two pages, behind which the host has the frames 0x7000 and 0x5000.
//! let memslot = Memslot { base: Gpa(0), bytes: 0x2000, hva: Hva(0x7f00_0000), readonly: false, log_dirty: false };
//! let pages = [HostPage::at(Hpa(0x7000)), HostPage::at(Hpa(0x5000))];
//! let host = HostPages { hva: Hva(0x7f00_0000), pages: &pages };
//!
//! // Tables that map the first page well, and the second to the first one's frame.
//! let mut memory = SparseMemory::allocating_from(0x10_0000);
//! let (caps, width) = (EptCaps::all(), MaxPhyAddr::new(46).unwrap());
//! let root = memory.allocate_table().unwrap();
//! let ept = Paging::ept(Eptp::for_root(root, Levels::Four, true, caps, width)?, caps, width);
//! let mut mapper = Mapper::new(&mut memory, ept);
//! let ram = Attributes::ram(Kind::Ept, Rights::RWX);
//! mapper.map(0x0000, 0x7000, PageSize::Size4K, ram)?;
//! mapper.map(0x1000, 0x7000, PageSize::Size4K, ram)?;
//!
//! let guest = Guest {
//!     process: 0,
//!     roots: &[ept],
//!     shadows: &[],
//!     slots: &[memslot.into()],
//!     host: &host,
//!     policy: Policy::strict(Kind::Ept),
//!     leaves: Some([2, 0, 0]),
//!     tables: None,
//!     caches: None,
//! };
//! let ram = AddrRange::new(Hpa(0), 1 << 30).unwrap();
//! let (guests, findings_kept) = ([guest], 100);
//! let verifier = Verifier::new(&memory, &guests, ram, findings_kept)?;
//! // As many threads as you like.
//! let report = std::thread::scope(|scope| {
//!     let other = scope.spawn(|| verifier.work());
//!     verifier.report([verifier.work(), other.join().unwrap()])
//! });
//!
//! let broken: Vec<_> = report.findings.iter().map(|found| (found.address, found.violation.invariant())).collect();
//! assert_eq!(broken, [(Input::Gpa(Gpa(0x1000)), Invariant::Frame), (Input::Gpa(Gpa(0x1000)), Invariant::NoAlias)]);
//! let first = report.findings[0].to_string();
//! assert!(first.contains("0x1000 is at 0x7000, the host has 0x5000 there"), "{first}");
//! # Ok::<(), ept::Error>(())
//! ```

mod alias;
mod finding;
mod frames;
mod host;
mod input;
mod met;
mod report;
mod shadow;
mod slots;
mod template;
mod tree;
mod work;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use memory_model::{AddrRange, Gpa, Gva, Hpa, PageSize};

use crate::error::Error;
use crate::phys::PhysMemory;
use crate::tlb::{Stale, Staleness};
use crate::walk::Path;

use alias::{Mark, Name};
use met::Met;
use report::{Lowest, NO_LEVEL, Tally};
use slots::{Overlap, Stretch};
use tree::Tree;
use work::{Pass, Scratch, Sink};

pub use finding::{Finding, Input, Invariant, Limit, NoPage, Place, Violation};
pub use host::{HostMap, HostPage, HostPages, UnknownHost};
pub use input::{Caches, DirtyLog, Encoding, Guest, Policy, Shadow, Slot};
pub use report::{Coverage, Report, Unchecked};

/// One verification of all tables of some guests. Its work may be shared among threads.
#[derive(Debug)]
pub struct Verifier<'a, M> {
    memory: &'a M,
    guests: &'a [Guest<'a>],
    spaces: Vec<Vec<Stretch>>,
    tree: Tree,
    /// By those who mark frames.
    met: Met,
    most: usize,
    /// What is known before any entry is looked at.
    start: Tally,
    /// Index of the first table that nobody has taken yet.
    next: AtomicUsize,
}

/// What one thread has found.
#[derive(Debug)]
pub struct Work {
    tally: Tally,
    mark: Mark,
}

/// How many tables a thread takes at a time, at most: fewer where there are few, so that each thread gets some.
const BATCH: usize = 32;

impl<'a, M: PhysMemory> Verifier<'a, M> {
    /// Prepares the verification: finds the tables of all roots. `ram` is where the host has RAM: tables lie there, and
    /// frames there are checked for aliases. At most `most` findings are kept.
    ///
    /// Refused are slots that are no whole pages or wrap, roots of PAE and 32-bit paging, a policy that a
    /// format cannot express, and more RAM than there is memory to keep bits for.
    pub fn new(
        memory: &'a M,
        guests: &'a [Guest<'a>],
        ram: AddrRange<Hpa>,
        most: usize,
    ) -> Result<Self, Error> {
        let mut start = Tally::new(most, guests.len());
        let (spaces, overlaps) = slots::stretches(guests)?;
        for Overlap { guest, first, second, at } in overlaps {
            let violation = Violation::SlotsOverlap { first, second };
            let head = Finding { guest, root: 0, address: Input::Gpa(at), path: Path::default(), violation };
            start.found(NO_LEVEL, second.raw(), head, Path::default);
        }
        let tree = Tree::find(tree::roots(guests)?, (guests, &spaces), memory, ram, &mut start)?;
        tree.owned(guests, &mut start);
        let met = tree.unmet(&spaces);
        Ok(Self { memory, guests, spaces, tree, met, most, start, next: AtomicUsize::new(0) })
    }

    /// Looks at tables until there are none left. Called from several threads, each takes a part.
    pub fn work(&self) -> Work {
        let (mut pass, mut scratch) = (self.pass(Mark::new(&self.tree.frames), &self.met), Scratch::new());
        let tables = &self.tree.tables;
        let most = (tables.len() / 256).clamp(1, BATCH);
        loop {
            let first = self.next.fetch_add(most, Ordering::Relaxed).min(tables.len());
            let batch = &tables[first..(first + most).min(tables.len())];
            if batch.is_empty() {
                return Work { tally: pass.tally, mark: pass.sink };
            }
            batch.iter().for_each(|table| pass.table(table, &mut scratch));
        }
    }

    /// Puts together what the threads have found. Tables that none of them has looked at are reported as not checked.
    pub fn report(&self, works: impl IntoIterator<Item = Work>) -> Report {
        let mut tally = self.start.clone();
        let mut mark: Option<Mark> = None;
        for work in works {
            tally.merge(work.tally);
            match &mut mark {
                Some(mark) => mark.merge(&work.mark),
                None => mark = Some(work.mark),
            }
        }
        let looked_at = tally.coverage.tables.iter().sum::<u64>();
        tally.unchecked(Unchecked::Unfinished, (self.tree.tables.len() as u64).saturating_sub(looked_at));
        if let Some(mark) =
            mark.filter(|mark| mark.twice.len() > 0 || mark.seen.intersects(&self.tree.frames))
        {
            tally.merge(self.name(&mark));
        }
        self.count_leaves(&mut tally);
        self.caches(&mut tally);
        tally.report()
    }

    fn pass<'p, S: Sink>(&'p self, sink: S, met: &'p Met) -> Pass<'p, M, S> {
        let tally = Tally::new(self.most, self.guests.len());
        let Self { memory, guests, spaces, tree, .. } = self;
        Pass { memory, guests, spaces, tree, met, sink, tally }
    }

    /// Who maps the frames that are mapped twice or hold tables. Each of `twice` has at least two users, so that twice
    /// as many of them are enough.
    fn name(&self, mark: &Mark) -> Tally {
        let name = Name {
            twice: &mark.twice,
            uses: 0,
            users: Lowest::new(self.most.saturating_mul(2)),
            mapped: Tally::new(self.most, self.guests.len()),
        };
        let met = self.tree.unmet(&self.spaces);
        let mut pass = self.pass(name, &met);
        let mut scratch = Scratch::new();
        self.tree.tables.iter().for_each(|table| pass.table(table, &mut scratch));
        pass.sink.finish()
    }

    /// Each processor's caches against the tables as they are.
    fn caches(&self, tally: &mut Tally) {
        for (number, guest) in self.guests.iter().enumerate() {
            let Some(caches) = guest.caches else {
                tally.unchecked(Unchecked::Caches, 1);
                continue;
            };
            let mut more = 0;
            for (processor, Caches { tlb, spaces }) in caches.iter().enumerate() {
                let Staleness { stale, compared, unknown } = tlb.stale(self.memory, spaces);
                tally.coverage.remembered += compared;
                tally.unchecked(Unchecked::CachedElsewhere, unknown);
                for Stale { linear, address, remembered, present, .. } in stale {
                    let address = if linear { Input::Gva(Gva(address)) } else { Input::Gpa(Gpa(address)) };
                    let violation = Violation::Remembered { processor, remembered, present };
                    let head = Finding { guest: number, root: 0, address, path: Path::default(), violation };
                    tally.found(NO_LEVEL, more, head, Path::default);
                    more += 1;
                }
            }
        }
    }

    fn count_leaves(&self, tally: &mut Tally) {
        for (number, guest) in self.guests.iter().enumerate() {
            let Some(expected) = guest.leaves else {
                tally.unchecked(Unchecked::NoCounts, 1);
                continue;
            };
            let seen = tally.coverage.leaves[number];
            for ((size, expected), seen) in PageSize::ALL.into_iter().zip(expected).zip(seen) {
                if expected != seen {
                    let violation = Violation::LeafCount { size, expected, seen };
                    let head = Finding {
                        guest: number,
                        root: 0,
                        address: Input::default(),
                        path: Path::default(),
                        violation,
                    };
                    tally.found(NO_LEVEL, size.level().into(), head, Path::default);
                }
            }
        }
    }
}

/// Verifies in this thread alone; see [`Verifier::new`].
pub fn verify<M: PhysMemory>(
    memory: &M,
    guests: &[Guest<'_>],
    ram: AddrRange<Hpa>,
    most: usize,
) -> Result<Report, Error> {
    let verifier = Verifier::new(memory, guests, ram, most)?;
    Ok(verifier.report([verifier.work()]))
}
