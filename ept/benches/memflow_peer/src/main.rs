//! Translations against memflow's, over the same tables: run by `cargo bench -p ept --bench memflow`.

#[path = "../../addresses/mod.rs"]
mod addresses;
#[path = "../../../../memory-model/benches/paired/mod.rs"]
mod paired;
mod peer;
#[path = "../../ram/mod.rs"]
mod ram;

use std::hint::black_box;

use ept::{Access, Attributes, Flags, FrameAllocator, Kind, Mapper, Rights, translate};

use addresses::{Addresses, SIZES, SMALL, START, each, ia32e, range};
use peer::Memflow;
use ram::{FRAME, Ram};

const ROUNDS: usize = 41;
const WALKS: u32 = 1 << 12;

fn main() {
    for (size, bytes) in SIZES {
        against_memflow(size, bytes);
    }
}

fn against_memflow(size: &str, bytes: u64) {
    let mut ram = Ram::new(bytes / 512 + 128 * FRAME);
    let paging = ia32e(ram.allocate_table().expect("room"));
    let page = Attributes::ram(Kind::Ia32e, Rights::RWX | Rights::USER);
    let mapped = Mapper::new(&mut ram, paging).map_range(range(START, bytes), 0, SMALL, page);
    mapped.expect("room");

    let mut memflow = Memflow::new(&ram, paging.root);
    let addresses = Addresses::new(bytes);
    let ours = |address| translate(&ram, &paging, address, Access::READ, Flags::Keep);
    for &address in &addresses.pool[..1000] {
        assert_eq!(ours(address).expect("mapped").address, address - START);
        assert_eq!(memflow.translate(address), address - START);
    }

    let in_cache = if size == "128 MiB" { None } else { Some(0.02) };
    paired::head(&format!("translate, tables of {size}, against memflow"));
    paired::compare(
        "one at a time",
        in_cache,
        ROUNDS,
        WALKS,
        addresses.walker(0, WALKS, each(ours)),
        addresses.walker(1, WALKS, each(|address| memflow.translate(address))),
    );
    paired::compare(
        "memflow in batches of 16",
        None,
        ROUNDS,
        WALKS,
        addresses.walker(0, WALKS, each(ours)),
        addresses.walker(1, WALKS, |addresses| {
            for batch in addresses.chunks(16) {
                black_box(memflow.translate_all(batch));
            }
        }),
    );
}
