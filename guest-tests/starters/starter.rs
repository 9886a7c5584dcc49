//! NAME: write here what the guest shows, and which rule it pins down.
//!
//! It starts at ring 3 in long mode. All memory is mapped one to one, and the stack is ready. There is no `std`: the crate
//! `guest` has what there is. A panic fails the run, with its message on the console.
#![no_std]
#![no_main]

use guest::{PAGE, PASS, load, ring, store};

guest::manifest!("NAME.toml");
guest::test!(test);

/// The region of the manifest.
const BANK: u64 = 0x400_0000;

/// `_processor`: the first has number 0.
fn test(_processor: u64) -> u8 {
    let pages = |range: core::ops::Range<u64>| range.map(|page| BANK + page * PAGE);
    pages(0..16).for_each(|page| store(page, page));
    ring(1); // the host does the steps of bell 1, and looks
    if pages(0..4).any(|page| load(page) != 0) {
        return 2; // the run ends with code 2
    }
    assert!(pages(4..16).all(|page| load(page) == page), "the host has changed other pages, too");
    PASS
}
