//! Mapping 4 KiB pages, against page_table_multiarch. `cargo bench -p ept --bench mapper`.

#[path = "peers/multiarch.rs"]
mod multiarch;
#[path = "../../memory-model/benches/paired/mod.rs"]
mod paired;
mod ram;

use ept::{
    Attributes, Controls, Cr3, FrameAllocator, Ia32e, Kind, Levels, Mapper, MaxPhyAddr, Paging, PhysMemory,
    Rights, Sizes,
};
use memory_addr::{PhysAddr, VirtAddr};
use memory_model::{AddrRange, Gva, PageSize};
use page_table_multiarch::x86_64::X64PageTable;

use multiarch::{FLAGS, Multiarch};
use ram::{FRAME, Ram, Random};

const START: u64 = 0x40_0000_0000;
const ROUNDS: usize = 21;

fn main() {
    paired::head("mapping 4 KiB pages into an empty table, a page");
    for (name, pages) in
        [("2 MiB in one call", 512), ("1 GiB in one call", 1 << 18), ("16 GiB in one call", 1 << 22)]
    {
        in_bulk(name, pages);
    }
    one_by_one("65536 random pages of 16 GiB, one a call", 1 << 16);
}

/// A mapper for an empty table in `ram`, in which what was there before is forgotten.
fn mapper(ram: &mut Ram) -> Mapper<'_, Ram> {
    ram.next = FRAME;
    let root = ram.allocate_table().expect("room");
    ram.write_entries(root, &[0; 512]).expect("a table");
    let max_phy_addr = MaxPhyAddr::new(46).expect("46 bits");
    let machine = Ia32e { levels: Levels::Four, max_phy_addr, no_execute: true, page_1g: true, amd: false };
    let cr3 = Cr3::new(root, max_phy_addr).expect("a good root");
    Mapper::new(ram, Paging::ia32e(cr3, machine, Controls::WP))
}

const PAGE: Attributes = Attributes::ram(Kind::Ia32e, Rights::RWX.union(Rights::USER));

fn in_bulk(name: &str, pages: u64) {
    let bytes = pages * FRAME;
    let (mut ram, theirs) = (Ram::new(bytes / 512 + 128 * FRAME), Ram::new(bytes / 512 + 128 * FRAME));
    let range = AddrRange::new(Gva(START), bytes.into()).expect("no wrap");
    let ours = || mapper(&mut ram).map_range(range, 0, Sizes::Only(PageSize::Size4K), PAGE).expect("room");
    let peer = || {
        Multiarch::lend(&theirs, FRAME);
        // Freeing it is not measured: its frames are lent anew.
        std::mem::forget(Multiarch::map(START, 0, bytes));
    };
    paired::compare(name, Some(1.0), ROUNDS, pages as u32, ours, peer);
}

fn one_by_one(name: &str, count: u64) {
    let mut random = Random::new();
    let mut pages: Vec<u64> = (0..count).map(|_| START + random.below(1 << 22) * FRAME).collect();
    pages.sort_unstable();
    pages.dedup();
    // Shuffled.
    for last in (1..pages.len()).rev() {
        pages.swap(last, random.below(last as u64 + 1) as usize);
    }
    let (mut ram, theirs) = (Ram::new(64 << 20), Ram::new(64 << 20));
    let ours = || {
        let mut mapper = mapper(&mut ram);
        for &page in &pages {
            mapper.map(page, page, PageSize::Size4K, PAGE).expect("room");
        }
    };
    let peer = || {
        Multiarch::lend(&theirs, FRAME);
        let mut table = X64PageTable::<Multiarch>::try_new().expect("room");
        let mut cursor = table.cursor();
        for &page in &pages {
            let (from, to) = (VirtAddr::from(page as usize), PhysAddr::from(page as usize));
            cursor.map(from, to, page_table_multiarch::PageSize::Size4K, FLAGS).expect("nothing is mapped");
        }
        drop(cursor);
        std::mem::forget(table);
    };
    paired::compare(name, None, ROUNDS, pages.len() as u32, ours, peer);
}
