//! Translations, alone and behind a second level, against other walkers over the same tables.
//!
//! `cargo bench -p ept --bench walk`. Each row translates random 4 KiB pages, each address known before the last is
//! done, so that a processor may overlap them. A table's size is that of all its frames: 16 KiB stay in the L1 cache,
//! 2 MiB in the L2 or L3, 128 MiB in none.

mod addresses;
#[path = "../../memory-model/benches/paired/mod.rs"]
mod paired;
mod peers;
mod ram;

use std::hint::black_box;

use ept::tlb::{LinearSpace, Tlb};
use ept::{
    Access, Attributes, EptCaps, Eptp, Flags, FrameAllocator, Kind, Levels, Mapper, Paging, Rights, lookup,
    nested_translate, nested_walk, translate, translate_many, walk,
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

    paired::head(&format!("translate, tables of {size}"));
    let ours = |address| translate(&ram, &paging, address, Access::READ, Flags::Keep);
    let row = |row: &str, target: Option<f64>, peer: &mut dyn FnMut()| {
        paired::compare(row, target, ROUNDS, WALKS, addresses.walker(0, WALKS, each(ours)), peer)
    };
    row("against x86_64", Some(1.0), &mut addresses.walker(1, WALKS, each(x86_64)));
    row(
        "against page_table_multiarch",
        Some(1.0),
        &mut addresses.walker(1, WALKS, each(|address| multiarch.query(VirtAddr::from(address as usize)))),
    );
    row("against a raw walk", None, &mut addresses.walker(1, WALKS, each(|address| raw.translate(address))));
    let unchecked = |address| translate(&raw, &paging, address, Access::READ, Flags::Keep);
    let row = |row: &str, peer: &mut dyn FnMut()| {
        paired::compare(row, Some(1.0), ROUNDS, WALKS, addresses.walker(0, WALKS, each(unchecked)), peer)
    };
    row(
        "in unchecked memory, against x86_64",
        &mut addresses.walker(1, WALKS, each(raw::x86_64(&ram, root))),
    );
    row(
        "in unchecked memory, page_table_multiarch",
        &mut addresses.walker(1, WALKS, each(|address| multiarch.query(VirtAddr::from(address as usize)))),
    );
    let found = |address| lookup(&raw, &paging, address);
    let row = |row: &str, peer: &mut dyn FnMut()| {
        paired::compare(row, Some(1.0), ROUNDS, WALKS, addresses.walker(0, WALKS, each(found)), peer)
    };
    row("lookup, against x86_64", &mut addresses.walker(1, WALKS, each(raw::x86_64(&ram, root))));
    row(
        "lookup, against page_table_multiarch",
        &mut addresses.walker(1, WALKS, each(|address| multiarch.query(VirtAddr::from(address as usize)))),
    );
    let path = |address| walk(&ram, &paging, address, Access::READ, Flags::Keep);
    paired::compare(
        "with the path, against a raw walk",
        None,
        ROUNDS,
        WALKS,
        addresses.walker(0, WALKS, each(path)),
        addresses.walker(1, WALKS, each(|address| raw.translate(address))),
    );
    batches(size, &ram, &paging, &addresses);
}

/// Many walks at once, against as many one after the other.
fn batches(size: &str, ram: &Ram, paging: &Paging, addresses: &Addresses) {
    let single = |address| translate(ram, paging, address, Access::READ, Flags::Keep);
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
        paired::compare(
            &format!("batches of {batch}"),
            target,
            ROUNDS,
            WALKS,
            addresses.walker(0, WALKS, many),
            addresses.walker(1, WALKS, each(single)),
        );
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

    paired::head(&format!("4x4, tables of {size} in each dimension"));
    let one = |address| translate(&ram, &guest, address, Access::READ, Flags::Keep);
    paired::compare(
        "nested_translate, against the guest's translate",
        Some(6.5),
        ROUNDS,
        WALKS / 4,
        addresses.walker(0, WALKS / 4, each(nested)),
        addresses.walker(1, WALKS / 4, each(one)),
    );
    let path = |address| walk(&ram, &guest, address, Access::READ, Flags::Keep);
    paired::compare(
        "nested_walk, against the guest's walk",
        Some(6.5),
        ROUNDS,
        WALKS / 4,
        addresses.walker(0, WALKS / 4, each(walked)),
        addresses.walker(1, WALKS / 4, each(path)),
    );
    // The tables' flags are set, so that what is found may be remembered.
    for &address in &addresses.pool {
        let page = nested_translate(&ram, Some(&guest), &second, Gva(address), Access::READ, Flags::Set);
        page.expect("mapped");
    }
    // As many as a processor has; then tables enough for all.
    for (pages, tables) in [(2048, 64), (64, 1 << 16)] {
        let mut tlb = Tlb::new(pages, tables);
        let mut cached = |address| {
            let (space, gva) = (LinearSpace::default(), Gva(address));
            tlb.nested(&ram, Some(&guest), &second, space, gva, Access::READ, Flags::Set)
        };
        addresses.pool.iter().take(1 << 18).for_each(|&address| _ = cached(address).expect("mapped"));
        paired::compare(
            &format!("{pages} pages, {tables} tables cached, likewise"),
            Some(2.0),
            ROUNDS,
            WALKS / 4,
            addresses.walker(0, WALKS / 4, each(cached)),
            addresses.walker(1, WALKS / 4, each(one)),
        );
    }
}
