//! What a report says, what it leaves out, and what is refused.

use std::collections::HashSet;
use std::sync::{Condvar, Mutex};
use std::thread::{self, ThreadId};

use ept::tlb::{InvEpt, LinearSpace, Mapped, Tlb};
use ept::verify::{Caches, Guest, HostMap, HostPage, Input, Place, Unchecked, Verifier, Violation};
use ept::{Access, Caching, Error, Flags, Format, Kind, Legacy32, Pae, Paging};
use memory_model::{AddrRange, Gpa, Gva, Hpa, Hva, PageSize};

use crate::world::*;

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    for kind in KINDS {
        let mut world = World::new(kind);
        world.tables = Some(world.frames());
        let report = world.verify();
        assert!(report.is_clean(), "{report}");
        assert_eq!(report.coverage.leaves, [[535, 1, 1]]);
        assert_eq!(report.coverage.frames, 535 + 512 + 262_144);
        // Under 0 to 1 GiB: the first page table, one each at 4 and 8 MiB; the one of 1 GiB is a leaf of the PDPT.
        assert_eq!(report.coverage.tables, [0, 4, 1, 1, 1, 0]);
        let unchecked: Vec<_> = report.unchecked.into_iter().collect();
        assert_eq!(unchecked, [(Unchecked::Caches, 1)]);
    }
}

#[test]
fn i13_is_checked_if_the_caches_are_given() {
    let world = World::new(Kind::Ept);
    assert_eq!(world.verify().unchecked(Unchecked::Caches), 1);
    let second = world.roots[0];
    let mut tlb = Tlb::new(16, 16);
    let (space, read) = (LinearSpace::default(), Access::READ);
    let look = |tlb: &mut Tlb, address| {
        tlb.nested(&world.memory, None, &second, space, Gva(address), read, Flags::Set).unwrap();
    };
    look(&mut tlb, 2 * K4);
    look(&mut tlb, 3 * K4);
    let report = |tlb: &Tlb, second| {
        let spaces = [Mapped { vpid: 0, pcid: 0, guest: None, second: Some(second) }];
        // The first processor has not yet run.
        let idle = Tlb::new(16, 16);
        let caches = [Caches { tlb: &idle, spaces: &[] }, Caches { tlb, spaces: &spaces }];
        verify(&world.memory, &[Guest { caches: Some(&caches), ..world.guest() }])
    };
    let clean = report(&tlb, second);
    assert_eq!((clean.is_clean(), clean.unchecked(Unchecked::Caches)), (true, 0), "{clean}");
    assert_eq!(clean.coverage.remembered, 3, "two pages, and the table they are in");
    // Another root: nobody has said what that is.
    let other = report(&tlb, Paging { root: 0x7000, ..second });
    assert_eq!((other.is_clean(), other.unchecked(Unchecked::CachedElsewhere)), (true, 3));
    // X is taken away, which is no finding but for the processor that has not heard of it.
    let leaf = world.leaf(3 * K4);
    world.memory.write_entry(leaf, world.read(leaf) & !4).unwrap();
    let stale = report(&tlb, second);
    let found = only(&stale, 13, 3 * K4);
    assert!(matches!(found.violation, Violation::Remembered { processor: 1, present: Some(_), .. }));
    let text = found.to_string();
    assert!(text.contains("processor 1 remembers page 0x20005000 Rights(READ | WRITE | EXEC)"), "{text}");
    tlb.invept(InvEpt::All);
    assert!(report(&tlb, second).is_clean());
}

#[test]
fn what_is_not_kept_is_counted() {
    let mut world = World::new(Kind::Ept);
    world.slots.clear();
    let guests = [world.guest()];
    for most in [0, 1, 7] {
        let report = ept::verify::verify(&world.memory, &guests, ram(), most).unwrap();
        assert_eq!((report.findings.len(), report.total()), (most, 537));
        let lowest: Vec<_> = (0..8).filter(|&page| page != 5).map(|page| page * K4).take(most).collect();
        assert_eq!(addresses(&report), lowest);
        assert!(report.to_string().contains(&format!("and {} more", 537 - most)));
    }
}

#[test]
fn work_that_nobody_has_done_is_not_passed() {
    let world = World::new(Kind::Ept);
    let guests = [world.guest()];
    let verifier = Verifier::new(&world.memory, &guests, ram(), 10).unwrap();
    assert_eq!(verifier.report([]).unchecked(Unchecked::Unfinished), 7);
}

#[test]
fn a_table_that_changes_meanwhile_is_not_passed() {
    let world = World::new(Kind::Ept);
    let guests = [world.guest()];
    let verifier = Verifier::new(&world.memory, &guests, ram(), 10).unwrap();
    world.memory.write_entry(world.entry(0, 2), 0).unwrap();
    let report = verifier.report([verifier.work()]);
    assert_eq!(report.unchecked(Unchecked::Changed), 1);
}

#[test]
fn input_that_makes_no_sense_is_refused() {
    let mut world = World::new(Kind::Ept);
    for (base, bytes, hva) in [
        (0, 0, 0),
        (1, K4, 0),
        (0, K4, 8),
        (0, 100, 0),
        (u64::MAX - 0xfff, 2 * K4, 0),
        (0, 2 * K4, u64::MAX - 0xfff),
    ] {
        world.slots = vec![slot(base, bytes, hva)];
        let guests = [world.guest()];
        let refused = Verifier::new(&world.memory, &guests, ram(), 1).map(|_| ()).unwrap_err();
        assert_eq!(refused, Error::Slot { base: Gpa(base), bytes });
    }
    world.slots.clear();
    let range = AddrRange::inclusive(Hpa(0), Hpa(u64::MAX)).unwrap();
    let guests = [world.guest()];
    let refused = Verifier::new(&world.memory, &guests, range, 1).map(|_| ());
    assert_eq!(refused.unwrap_err(), Error::HostRam { range });
    for format in [Format::pae(Pae { max_phy_addr: WIDTH, no_execute: true }), legacy()] {
        world.roots[0] = Paging::new(format, 0);
        let guests = [world.guest()];
        let refused = Verifier::new(&world.memory, &guests, ram(), 1).map(|_| ());
        assert_eq!(refused.unwrap_err(), Error::Unverifiable { kind: format.kind() });
    }
    let mut world = World::new(Kind::Ept);
    world.policy.ram = Caching::Pat(0);
    let guests = [world.guest()];
    assert_eq!(Verifier::new(&world.memory, &guests, ram(), 1).map(|_| ()).unwrap_err(), Error::Caching);
}

fn legacy() -> Format {
    Format::legacy32(Legacy32 { page_4m: true, pse_36: None })
}

/// A host that lets nobody go on before two threads have asked it something, or one has no work left.
struct Together<'a> {
    host: &'a Host,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    asked: HashSet<ThreadId>,
    done: bool,
}

impl Together<'_> {
    fn done(&self) {
        self.state.lock().unwrap().done = true;
        self.changed.notify_all();
    }
}

impl HostMap for Together<'_> {
    fn pages(&self, hva: Hva, pages: &mut [HostPage]) {
        let mut state = self.state.lock().unwrap();
        state.asked.insert(thread::current().id());
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| state.asked.len() < 2 && !state.done).unwrap());
        self.host.pages(hva, pages);
    }
}

/// Two page tables, of which each thread has to take one, with the same frame in both.
#[test]
fn what_two_threads_have_seen_once_each_is_seen_twice() {
    let mut world = World::empty(format(Kind::Ept));
    world.slots = vec![slot(0, 2 * M2, 0x7f00_0000_0000)];
    for gpa in [0, M2] {
        world.host.map(0x7f00_0000_0000 + gpa, 0x5000_0000, K4);
        world.map(gpa, PageSize::Size4K, world.all());
    }
    let host = Together { host: &world.host, state: Mutex::default(), changed: Condvar::new() };
    let guests = [Guest { host: &host, ..world.guest() }];
    let verifier = Verifier::new(&world.memory, &guests, ram(), 10).unwrap();
    let works = thread::scope(|scope| {
        let work = || {
            let work = verifier.work();
            host.done();
            work
        };
        [scope.spawn(work), scope.spawn(work)].map(|thread| thread.join().unwrap())
    });
    assert_eq!(host.state.lock().unwrap().asked.len(), 2, "one thread has taken both tables");
    let report = verifier.report(works);
    let found = only(&report, 9, M2);
    let other = Place { guest: 0, root: 0, address: Input::Gpa(Gpa(0)) };
    assert_eq!(found.violation, Violation::Alias { hpa: Hpa(0x5000_0000), other });
    assert_eq!(report.coverage.leaves, [[2, 0, 0]]);
}
