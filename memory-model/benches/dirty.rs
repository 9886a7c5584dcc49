//! Dirty bits against vm-memory's `AtomicBitmap`: marking and taking.

#[path = "paired/mod.rs"]
mod paired;

use std::hint::black_box;
use std::iter::repeat_with;
use std::num::NonZeroUsize;

use memory_model::DirtyBitmap;
use paired::{compare, head};
use vm_memory::bitmap::{AtomicBitmap, Bitmap};

const PAGE: u64 = 0x1000;
const GIB_64: u64 = 64 << 30;
const PAGES: u64 = GIB_64 / PAGE;
const ROUNDS: usize = 31;

fn main() {
    marking();
    taking();
}

fn marking() {
    // Neither side may be built for the one size it has here.
    let (ours, peer) = black_box((new_ours(), new_peer()));
    head("mark dirty");
    let scattered: Vec<u64> = random_pages(1 << 16).collect();
    let rows: [(&str, Option<f64>, u64, &[u64]); 5] = [
        ("8 bytes, the same page", Some(1.00), 8, &[0x1234_5000]),
        ("8 bytes, random pages", Some(1.00), 8, &scattered),
        ("64 KiB, random", None, 0x1_0000, &scattered),
        ("1 MiB, random", Some(0.10), 0x10_0000, &scattered),
        ("1 MiB, the same", Some(0.10), 0x10_0000, &[0x1234_5000]),
    ];
    for (row, target, len, offsets) in rows {
        let count = if len > 8 { 1 << 12 } else { 1 << 18 };
        compare(
            row,
            target,
            ROUNDS,
            count,
            || each(offsets, count, |at| ours.mark(at, len)),
            || each(offsets, count, |at| peer.mark_dirty(at as usize, len as usize)),
        );
    }
}

/// Does `mark` at `count` offsets: those given, over and over.
fn each(offsets: &[u64], count: u32, mark: impl Fn(u64)) {
    for &at in offsets.iter().cycle().take(count as usize) {
        mark(black_box(at));
    }
}

fn taking() {
    head("snapshot and clear 64 GiB");
    let one_percent = (PAGES / 100) as usize;
    let random: Vec<u64> = random_pages(one_percent).collect();
    // Runs of 4 MiB, as a guest dirties its heap and its page cache.
    let clustered: Vec<u64> =
        random_pages(one_percent / 1024).flat_map(|at| (0..1024).map(move |page| at + page * PAGE)).collect();
    for (row, target, pages) in [
        ("clean", None, &[][..]),
        ("1 % dirty, random", Some(0.25), &random),
        ("1 % dirty, 4 MiB runs", Some(0.25), &clustered),
    ] {
        // A bitmap for each round, marked beforehand: only the taking is timed.
        let mut ours = repeat_with(|| {
            let bitmap = new_ours();
            pages.iter().for_each(|&at| bitmap.mark(at, 1));
            bitmap
        })
        .take(ROUNDS + 1)
        .collect::<Vec<_>>()
        .into_iter();
        let mut peer = repeat_with(|| {
            let bitmap = new_peer();
            pages.iter().for_each(|&at| bitmap.mark_dirty(at as usize, 1));
            bitmap
        })
        .take(ROUNDS + 1)
        .collect::<Vec<_>>()
        .into_iter();
        let mut emptied = (Vec::new(), Vec::new());
        compare(
            row,
            target,
            ROUNDS,
            1,
            || {
                let bitmap = ours.next().expect("one a round");
                black_box(bitmap.snapshot_and_clear(0..GIB_64));
                emptied.0.push(bitmap);
            },
            || {
                let bitmap = peer.next().expect("one a round");
                black_box(bitmap.get_and_reset());
                emptied.1.push(bitmap);
            },
        );
    }
}

fn new_ours() -> DirtyBitmap {
    DirtyBitmap::new(GIB_64)
}

fn new_peer() -> AtomicBitmap {
    AtomicBitmap::new(GIB_64 as usize, NonZeroUsize::new(PAGE as usize).unwrap())
}

/// Offsets of pages, from a fixed seed (xorshift).
fn random_pages(count: usize) -> impl Iterator<Item = u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % PAGES * PAGE
    })
    .take(count)
}
