//! Several processors fault at once, also while the host takes pages away.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use ept::PhysMemory;
use ept::mmu::{HostFault, HostFrame, HostFrames, Invalidations};
use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize, Pages};
use vcpu::soft::host::{Counts, Host, MmuNotifier, Owner, Protection};

use crate::world::{M2, World};

const THREADS: u64 = 4;

/// What each of some threads finds that touch the same pages at the same time.
fn together(world: &World, bytes: u64) -> Vec<Vec<HostFrame>> {
    let barrier = Barrier::new(THREADS as usize);
    let touch_all = |_| {
        barrier.wait();
        (0..bytes >> 12).map(|page| world.touch(page << 12)).collect()
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || touch_all(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn threads_that_fault_on_the_same_page_get_one_frame() {
    for (pages, mappings) in [(Pages::Small, [2048, 0, 0]), (Pages::Thp, [0, 4, 0])] {
        // No frame more than that: who came second took none.
        let frames = [mappings[0], mappings[1], 0];
        let world = World::on(Host::with_frames(frames), 4 * M2, pages);
        let found = together(&world, 4 * M2);
        assert!(found.iter().all(|other| *other == found[0]));
        assert_eq!(world.settled().counts(), Counts { mappings, ..Counts::default() });
    }
}

#[test]
fn faults_beside_events_leave_every_frame_where_it_belongs() {
    let world = World::on(Host::with_frames([3000, 64, 0]), 2 * M2, Pages::Thp);
    let done = AtomicBool::new(false);
    let fault = |seed: u64| {
        let mut page = seed;
        while !done.load(Ordering::Relaxed) {
            page = page.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(seed | 1);
            let offset = ((page >> 40) % 1024) << 12;
            match world.host.host_frame(world.hva(offset), page & 1 == 0) {
                // It may be gone at any time. What is there is RAM.
                Ok(found) => assert!(world.host.read_entry(found.hpa.0).is_err() || found.hpa.0 != 0),
                Err(HostFault::CopyOnWrite) => drop(world.host.break_cow(world.hva(offset), &mut ())),
                Err(fault) => assert_eq!(fault, HostFault::Unmapped, "while it may not be reached"),
            }
        }
    };
    thread::scope(|scope| {
        (0..THREADS).for_each(|seed| drop(scope.spawn(move || fault(seed))));
        for round in 0..300 {
            let part = world.range((round % 900) << 12, 0x5_0000);
            let all = world.range(0, 2 * M2);
            world.host.swap_out(part, &mut ());
            world.host.merge(world.hva((round % 64) << 12), world.hva(0x8_0000), &mut ());
            world.host.migrate(part, &mut ());
            world.host.protect(part, Protection::None, &mut ());
            world.host.collapse(all, &mut ());
            world.host.split(part, &mut ());
            world.host.protect(all, Protection::ReadWrite, &mut ());
            if round % 4 == 0 {
                world.host.discard(all, &mut ()).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    // Frames that got lost would be missed here.
    world.settled();
    world.host.discard(world.range(0, 2 * M2), &mut ()).unwrap();
    assert_eq!(world.settled().counts(), Counts::default());
}

/// An MMU with its lock, as KVM has them: what it has mapped, and the invalidations it knows of.
#[derive(Default)]
struct Mmu {
    invalidations: Invalidations,
    mapped: HashMap<u64, HostFrame>,
}

/// What tells it. Guest-physical addresses are offsets in the block.
struct Notifier<'a> {
    mmu: &'a Mutex<Mmu>,
    block: AddrRange<Hva>,
}

impl Notifier<'_> {
    fn pages(&self, range: AddrRange<Hva>) -> AddrRange<Gpa> {
        let inside = self.block.intersection(range).unwrap();
        let [first, last] = [inside.first(), inside.last()].map(|hva| Gpa(hva.0 - self.block.first().0));
        AddrRange::inclusive(first, last).unwrap()
    }
}

impl MmuNotifier for Notifier<'_> {
    fn invalidate_range_start(&mut self, range: AddrRange<Hva>) {
        let (mut mmu, range) = (self.mmu.lock().unwrap(), self.pages(range));
        mmu.invalidations.begin(range);
        mmu.mapped.retain(|&gpa, _| !range.contains(Gpa(gpa)));
    }

    fn invalidate_range_end(&mut self, _: AddrRange<Hva>) {
        self.mmu.lock().unwrap().invalidations.end();
    }
}

/// Rules N1 to N3 from both sides: what an MMU has mapped by them may be used, whatever the host does beside.
#[test]
fn n3_no_processor_uses_a_frame_that_has_changed_hands() {
    let world = World::on(Host::with_frames([4000, 64, 0]), 2 * M2, Pages::Thp);
    let mmu = Mutex::new(Mmu::default());
    let notifier = || Notifier { mmu: &mmu, block: world.range(0, 2 * M2) };
    let pages = [0_u64, 1, 2, 511, 512, 513, 900];
    // Each processor has a word in each page, and counts there.
    let processor = |number: u64| {
        let mut counts = [0_u64; 7];
        for round in 0..6000 {
            let which = (round * 5 + number) as usize % pages.len();
            let gpa = pages[which] << 12;
            let seq = mmu.lock().unwrap().invalidations.seq();
            let found = match world.host.host_frame(world.hva(gpa), true) {
                Ok(found) => found,
                Err(HostFault::CopyOnWrite) => {
                    world.host.break_cow(world.hva(gpa), &mut notifier()).unwrap();
                    continue;
                }
                Err(fault) => panic!("{fault}"),
            };
            let mut mmu = mmu.lock().unwrap();
            if !mmu.invalidations.retry(seq, AddrRange::page_of(Gpa(gpa), PageSize::Size4K)) {
                mmu.mapped.insert(gpa, found);
            }
            let Some(mapped) = mmu.mapped.get(&gpa) else { continue };
            let word = mapped.hpa.0 + number * 8;
            assert_eq!(world.host.read_entry(word), Ok(counts[which]), "page {:#x}", gpa);
            counts[which] += 1;
            world.host.write(Hpa(word), &counts[which].to_le_bytes()).expect("mapped for writes");
        }
    };
    thread::scope(|scope| {
        let processor = &processor;
        let threads: Vec<_> = (0..2).map(|number| scope.spawn(move || processor(number))).collect();
        let mut round = 0;
        while threads.iter().any(|thread| !thread.is_finished()) {
            let (part, all) = (world.range((round % 500) << 12, 0x4_0000), world.range(0, 2 * M2));
            let [one, other] = [round, round / 7].map(|which| world.hva(pages[which as usize % 7] << 12));
            world.host.migrate(part, &mut notifier());
            world.host.merge(one, other, &mut notifier());
            world.host.collapse(all, &mut notifier());
            world.host.swap_out(part, &mut notifier());
            world.host.migrate(all, &mut notifier());
            round += 1;
        }
    });
    world.settled();
}

#[test]
fn tables_are_taken_and_given_back_by_several_threads() {
    let host = Host::with_frames([64, 0, 0]);
    thread::scope(|scope| {
        for mine in 1..=THREADS {
            let host = &host;
            scope.spawn(move || {
                for _ in 0..2000 {
                    let Some(table) = host.allocate_table() else {
                        host.quiesce();
                        continue;
                    };
                    assert_eq!(host.compare_exchange(table, 0, mine), Ok(true), "it was not empty");
                    assert_eq!(host.read_entry(table), Ok(mine));
                    host.free_table(table);
                }
            });
        }
    });
    host.quiesce();
    let tables: Vec<u64> = std::iter::from_fn(|| host.allocate_table()).collect();
    assert_eq!(tables.len(), 64);
    assert!(tables.iter().all(|&table| host.owner(Hpa(table)) == Owner::Table));
}
