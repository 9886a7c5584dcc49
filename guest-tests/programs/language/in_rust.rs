//! A guest in Rust: 16 pages are written, then the host takes half of them back, and those are zero.
#![no_std]
#![no_main]

use core::fmt::Write;

use guest::{Console, PAGE, PASS, load, ring, store};

guest::manifest!("in_rust.toml");
guest::test!(test);

const BANK: u64 = 0x400_0000;
const PAGES: u64 = 16;

fn test(_processor: u64) -> u8 {
    let pages = || (0..PAGES).map(|page| BANK + page * PAGE);
    pages().for_each(|page| store(page, page));
    ring(1);
    let zeros = pages().filter(|&page| load(page) == 0).count();
    let kept = pages().filter(|&page| load(page) == page).count();
    let _ = writeln!(Console, "{zeros} zero, {kept} kept");
    if zeros == 8 && kept == 8 { PASS } else { 1 }
}
