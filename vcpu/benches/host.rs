//! What the simulated host costs by itself: a fault, an access, a table. `cargo bench -p vcpu --bench host`.
//!
//! The best of some rounds, a call: what others do on this machine can only make it slower.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use ept::PhysMemory;
use ept::mmu::HostFrames;
use memory_model::{Hva, Pages, RamBlock};
use vcpu::soft::Host;

const PAGES: u64 = 1 << 16;
const ROUNDS: usize = 15;

fn main() {
    println!("{:44} ns/call", "simulated host");
    let touch_all = |pages: Pages, threads: u64| {
        best(PAGES, || {
            let block = RamBlock::anonymous("ram", PAGES << 12).expect("address space");
            let host = Host::default();
            host.map_pages(&block, pages);
            touch(&host, block.hva(), threads)
        })
    };
    row("host_frame, first touch, 4K", touch_all(Pages::Small, 1));
    row("the same by two threads, on halves", touch_all(Pages::Small, 2));
    row("the same by one, frames of 2M", touch_all(Pages::Thp, 1));

    let block = RamBlock::anonymous("ram", PAGES << 12).expect("address space");
    let host = Host::default();
    host.map_pages(&block, Pages::Small);
    touch(&host, block.hva(), 1);
    row("host_frame of a page that has one", best(PAGES, || touch(&host, block.hva(), 1)));
    let read = |address: u64| {
        let all = || (0..PAGES).for_each(|_| assert!(host.read_entry(black_box(address)).is_ok()));
        best(PAGES, all)
    };
    row("read_entry of RAM", read(host.frame_of(block.hva()).expect("touched").0));
    row("read_entry of a table", read(host.allocate_table().expect("room")));
    let tables = || {
        for _ in 0..PAGES {
            let table = host.allocate_table().expect("room");
            host.free_table(table);
            host.quiesce();
        }
    };
    row("allocate_table, free_table, quiesce", best(PAGES, tables));
}

/// Touches all pages for a write, each thread its part.
fn touch(host: &Host, start: Hva, threads: u64) {
    let part = PAGES / threads;
    let barrier = Barrier::new(threads as usize);
    let touch_part = |thread: u64| {
        barrier.wait();
        for page in thread * part..(thread + 1) * part {
            black_box(host.host_frame(Hva(start.0 + (page << 12)), true)).expect("mapped");
        }
    };
    if threads == 1 {
        return touch_part(0);
    }
    thread::scope(|scope| (0..threads).for_each(|thread| drop(scope.spawn(move || touch_part(thread)))));
}

/// Nanoseconds a call, of `calls` that `act` makes.
fn best(calls: u64, mut act: impl FnMut()) -> f64 {
    let round = |_| {
        let start = Instant::now();
        act();
        start.elapsed().as_nanos() as f64 / calls as f64
    };
    (0..ROUNDS).map(round).fold(f64::INFINITY, f64::min)
}

fn row(what: &str, nanoseconds: f64) {
    println!("{what:44} {nanoseconds:7.1}");
}
