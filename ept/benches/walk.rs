//! Translations, alone and behind a second level, against other walkers over the same tables.
//!
//! `cargo bench -p ept --bench walk`. Each row translates random 4 KiB pages. "One by one" is a walk whose address is
//! known when the walk before has ended; where walks "overlap", all addresses are known beforehand. A table's size is
//! that of all its frames: 16 KiB stay in the L1 cache, 2 MiB in the L2 or L3, 128 MiB in none.

mod addresses;
#[path = "../../memory-model/benches/paired/mod.rs"]
mod paired;
mod peers;
mod ram;

use std::hint::black_box;

use ept::tlb::{LinearSpace, Tlb};
use ept::{
    Access, Attributes, EptCaps, Eptp, Fault, Flags, FrameAllocator, Kind, Leaf, Levels, Mapper, NestedFault,
    NestedLeaf, NestedWalk, Paging, Rights, lookup, nested_translate, nested_walk, translate, translate_many,
    walk,
};
use memory_addr::VirtAddr;
use memory_model::Gva;

use addresses::{Addresses, SIZES, SMALL, START, each, ia32e, range, width};
use peers::multiarch::Multiarch;
use peers::raw::{self, Raw};
use ram::{FRAME, Ram};

const ROUNDS: usize = 41;
const WALKS: u32 = 1 << 14;

fn main() {
    for (size, bytes) in SIZES {
        one_dimension(size, bytes);
    }
    for (size, bytes) in SIZES {
        two_dimensions(size, bytes);
    }
}

fn ept(root: u64) -> Paging {
    let eptp = Eptp::for_root(root, Levels::Four, true, EptCaps::all(), width()).expect("a good root");
    Paging::ept(eptp, EptCaps::all(), width())
}

fn one_dimension(size: &str, bytes: u64) {
    let ram = Ram::new(bytes / 512 + 128 * FRAME);
    Multiarch::lend(&ram, FRAME);
    let multiarch = Multiarch::map(START, 0, bytes);
    let root = multiarch.root_paddr().as_usize() as u64;
    let (paging, raw, x86_64) = (ia32e(root), Raw::new(&ram, root), raw::x86_64(&ram, root));
    let addresses = Addresses::new(bytes);

    for &address in &addresses.pool[..1000] {
        let leaf = translate(&ram, &paging, address, Access::READ, Flags::Keep).expect("mapped");
        assert_eq!(leaf.address, address - START);
        assert_eq!(leaf.address, raw.translate(address));
    }

    let translated = |address| translate(&ram, &paging, address, Access::READ, Flags::Keep);
    let unchecked = |address| translate(&raw, &paging, address, Access::READ, Flags::Keep);
    let found = |address| lookup(&raw, &paging, address);
    let path = |address| walk(&ram, &paging, address, Access::READ, Flags::Keep);
    let query = |address| multiarch.query(VirtAddr::from(address as usize));
    let bare = |address| raw.translate(address);

    let end = |found: &Result<Leaf, Fault>| found.map_or(0, |leaf| leaf.address);
    let ours = || addresses.walker(0, WALKS, chained(translated, end));
    let row = |row: &str, target: Option<f64>, peer: &mut dyn FnMut(&[u64])| {
        paired::compare(row, target, ROUNDS, WALKS, ours(), addresses.walker(1, WALKS, peer))
    };
    paired::head(&format!("translate, one by one, tables of {size}"));
    row("against x86_64", Some(1.0), &mut chained(&x86_64, raw::end));
    row(
        "against page_table_multiarch",
        Some(1.0),
        &mut chained(query, |found| found.map_or(0, |page| page.0.as_usize() as u64)),
    );
    row("against a raw walk", None, &mut chained(bare, |&end| end));

    paired::head(&format!("translate, walks that overlap, tables of {size}"));
    let row = |row: &str, ours: &mut dyn FnMut(&[u64]), peer: &mut dyn FnMut(&[u64])| {
        let (ours, peer) = (addresses.walker(0, WALKS, ours), addresses.walker(1, WALKS, peer));
        paired::compare(row, None, ROUNDS, WALKS, ours, peer)
    };
    row("against x86_64", &mut each(translated), &mut each(&x86_64));
    row("against page_table_multiarch", &mut each(translated), &mut each(query));
    row("against a raw walk", &mut each(translated), &mut each(bare));
    row("in unchecked memory, against x86_64", &mut each(unchecked), &mut each(&x86_64));
    row("in unchecked memory, page_table_multiarch", &mut each(unchecked), &mut each(query));
    row("lookup, against x86_64", &mut each(found), &mut each(&x86_64));
    row("lookup, against page_table_multiarch", &mut each(found), &mut each(query));
    row("with the path, against a raw walk", &mut each(path), &mut each(bare));
    batches(size, &ram, &paging, &addresses);
}

/// Many walks at once, against as many one by one, and against as many that may overlap.
fn batches(size: &str, ram: &Ram, paging: &Paging, addresses: &Addresses) {
    let single = |address| translate(ram, paging, address, Access::READ, Flags::Keep);
    let end = |found: &Result<Leaf, Fault>| found.map_or(0, |leaf| leaf.address);
    // A cache holds what there is to wait for, or does not.
    let target = if size == "128 MiB" { Some(0.5) } else { None };
    paired::head(&format!("translate_many, tables of {size}, against single walks"));
    for batch in [16, 64] {
        let many = |addresses: &[u64]| {
            for batch in addresses.chunks(batch) {
                translate_many(ram, paging, batch, Access::READ, Flags::Keep, |outcome| {
                    black_box(outcome).ok();
                });
            }
        };
        let row = |row: &str, target, peer: &mut dyn FnMut(&[u64])| {
            let (ours, peer) = (addresses.walker(0, WALKS, many), addresses.walker(1, WALKS, peer));
            paired::compare(row, target, ROUNDS, WALKS, ours, peer)
        };
        row(&format!("batches of {batch}, one by one"), target, &mut chained(single, end));
        row(&format!("batches of {batch}, walks that overlap"), None, &mut each(single));
    }
}

/// A guest's tables behind an EPT that maps as many bytes: each of 4 KiB pages.
fn two_dimensions(size: &str, bytes: u64) {
    let mut ram = Ram::new(2 * (bytes / 512) + 256 * FRAME);
    // The guest's tables lie at the same guest-physical and host-physical addresses, its pages at `START`.
    let root = ram.allocate_table().expect("room");
    let guest = ia32e(root);
    let page = Attributes::ram(Kind::Ia32e, Rights::RWX | Rights::USER);
    let mapped = Mapper::new(&mut ram, guest).map_range(range(START, bytes), START, SMALL, page);
    mapped.expect("room");
    let second = ept(ram.allocate_table().expect("room"));
    let page = Attributes::ram(Kind::Ept, Rights::RWX);
    let mut mapper = Mapper::new(&mut ram, second);
    mapper.map_range(range(0, second.root), 0, SMALL, page).expect("room");
    mapper.map_range(range(START, bytes), START, SMALL, page).expect("room");

    let addresses = Addresses::new(bytes);
    let walked = |address| nested_walk(&ram, Some(&guest), &second, Gva(address), Access::READ, Flags::Keep);
    assert_eq!(walked(addresses.pool[0]).references, 24);
    let nested =
        |address| nested_translate(&ram, Some(&guest), &second, Gva(address), Access::READ, Flags::Keep);
    assert_eq!(nested(addresses.pool[0]), walked(addresses.pool[0]).outcome);

    let one = |address| translate(&ram, &guest, address, Access::READ, Flags::Keep);
    let path = |address| walk(&ram, &guest, address, Access::READ, Flags::Keep);
    let row = |row: &str, target, ours: &mut dyn FnMut(&[u64]), peer: &mut dyn FnMut(&[u64])| {
        let (ours, peer) = (addresses.walker(0, WALKS / 4, ours), addresses.walker(1, WALKS / 4, peer));
        paired::compare(row, target, ROUNDS, WALKS / 4, ours, peer)
    };
    let leaf = |found: &Result<Leaf, Fault>| found.map_or(0, |leaf| leaf.address);
    let nested_leaf = |found: &Result<NestedLeaf, NestedFault>| found.map_or(0, |leaf| leaf.hpa.raw());
    paired::head(&format!("4x4, one by one, tables of {size} in each dimension, against the guest's alone"));
    row("nested_translate", Some(6.5), &mut chained(nested, nested_leaf), &mut chained(one, leaf));
    row("nested_translate, walks that overlap", None, &mut each(nested), &mut each(one));
    let walked_to = |walk: &NestedWalk| nested_leaf(&walk.outcome);
    row(
        "nested_walk",
        Some(6.5),
        &mut chained(walked, walked_to),
        &mut chained(path, |walk| leaf(&walk.outcome)),
    );
    // The tables' flags are set, so that what is found may be remembered.
    for &address in &addresses.pool {
        let page = nested_translate(&ram, Some(&guest), &second, Gva(address), Access::READ, Flags::Set);
        page.expect("mapped");
    }
    // As many as a processor has, which are enough for the smallest tables; then tables enough for all.
    let target = if size == "16 KiB" { Some(2.0) } else { None };
    for (pages, tables, target) in [(2048, 64, target), (64, 1 << 16, None)] {
        let mut tlb = Tlb::new(pages, tables);
        let mut cached = |address| {
            let (space, gva) = (LinearSpace::default(), Gva(address));
            tlb.nested(&ram, Some(&guest), &second, space, gva, Access::READ, Flags::Set)
        };
        addresses.pool.iter().take(1 << 18).for_each(|&address| _ = cached(address).expect("mapped"));
        let name = format!("Tlb::nested, {pages} pages, {tables} tables");
        row(&name, target, &mut chained(&mut cached, nested_leaf), &mut chained(one, leaf));
        row("the same, walks that overlap", None, &mut each(&mut cached), &mut each(one));
    }
}

/// Calls `walk` with each address, once it is known where the walk before has led (`end`): so an access waits for its
/// translation.
fn chained<T>(mut walk: impl FnMut(u64) -> T, end: impl Fn(&T) -> u64) -> impl FnMut(&[u64]) {
    move |addresses| {
        let (mut last, none) = (0, black_box(0));
        for &address in addresses {
            let found = walk(address | last & none);
            last = end(&found);
            black_box(&found);
        }
    }
}
