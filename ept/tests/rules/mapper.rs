//! The mapper against a plain map of pages, and each refusal.

use std::collections::BTreeMap;

use ept::{
    Access, Attributes, Controls, Cr3, EptCaps, Eptp, Error, Flags, FrameAllocator, Ia32e, Kind, Levels,
    Mapper, MaxPhyAddr, MemoryError, Paging, PhysMemory, Rights, SparseMemory, mappings, translate,
};
use memory_model::PageSize;
use proptest::prelude::*;

const WIDTH: MaxPhyAddr = MaxPhyAddr::new(40).unwrap();

/// Memory with an allocator that runs dry.
struct Scarce {
    memory: SparseMemory,
    left: usize,
}

impl PhysMemory for Scarce {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.memory.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.memory.compare_exchange(address, current, new)
    }
}

impl FrameAllocator for Scarce {
    fn allocate_table(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        self.memory.allocate_table()
    }
    fn free_table(&mut self, frame: u64) {
        self.left += 1;
        self.memory.free_table(frame);
    }
}

fn empty(kind: Kind) -> (Scarce, Paging) {
    let mut memory = SparseMemory::allocating_from(0x10_0000);
    let root = memory.allocate_table().unwrap();
    let paging = match kind {
        Kind::Ept => {
            let eptp = Eptp::for_root(root, Levels::Four, true, EptCaps::all(), WIDTH).unwrap();
            Paging::ept(eptp, EptCaps::all(), WIDTH)
        }
        _ => {
            let processor = Ia32e::new(Levels::Four, WIDTH);
            Paging::ia32e(Cr3::new(root, WIDTH).unwrap(), processor, Controls::WP)
        }
    };
    (Scarce { memory, left: 1000 }, paging)
}

#[derive(Clone, Debug)]
enum Op {
    Map { address: u64, frame: u64, size: PageSize, rights: Rights },
    Unmap { address: u64 },
    Protect { address: u64, rights: Rights },
}

prop_compose! {
    /// Few addresses, close together, so that operations meet; some misaligned.
    fn ops()(kind in 0..5, slot in 0..12u64, page in 0..3u64, size in 0..3usize, write: bool, odd in 0..12u64) -> Op {
        let size = PageSize::ALL[size];
        let mut address = match slot {
            0..4 => page << 12,
            4..7 => page << 21,
            7..10 => page << 30,
            _ => (511 << 39) + (page << 21),
        };
        if slot >= 10 {
            address |= 0xffff_0000_0000_0000;
        }
        let rights = Rights::READ | if write { Rights::WRITE } else { Rights::EXEC };
        let frame = (size.bytes() << page) + if odd == 0 { 0x1000 } else { 0 };
        match kind {
            0..3 => Op::Map { address: address + if odd == 1 { 0x800 } else { 0 }, frame, size, rights },
            3 => Op::Unmap { address },
            _ => Op::Protect { address, rights },
        }
    }
}

type Pages = BTreeMap<u64, (u64, PageSize, Rights)>;

/// What the operation does to a plain map; whether it succeeds.
fn apply(pages: &mut Pages, op: &Op, ept: bool) -> bool {
    let in_reach = |address: u64| !ept || address < 1 << 48;
    let last = |address: u64, size: PageSize| address + (size.bytes() - 1);
    match *op {
        Op::Map { address, frame, size, rights } => {
            let aligned = address % size.bytes() == 0 && frame % size.bytes() == 0;
            let free = aligned
                && pages.iter().all(|(&other, &(_, other_size, _))| {
                    last(address, size) < other || last(other, other_size) < address
                });
            if !(in_reach(address) && free) {
                return false;
            }
            pages.insert(address, (frame, size, rights));
            true
        }
        Op::Unmap { address } => pages.remove(&address).is_some(),
        Op::Protect { address, rights } => match pages.get_mut(&address) {
            Some(page) => {
                page.2 = rights;
                true
            }
            None => false,
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_mapper_refines_a_map_of_pages(ept: bool, ops in prop::collection::vec(ops(), 1..40)) {
        let kind = if ept { Kind::Ept } else { Kind::Ia32e };
        let (mut memory, paging) = empty(kind);
        let mut pages = Pages::new();
        for op in ops {
            let expected = apply(&mut pages, &op, ept);
            let mut mapper = Mapper::new(&mut memory, paging);
            let done = match op {
                Op::Map { address, frame, size, rights } => {
                    mapper.map(address, frame, size, Attributes::ram(kind, rights))
                }
                Op::Unmap { address } => mapper.unmap(address).map(|_| ()),
                Op::Protect { address, rights } => mapper.protect(address, rights).map(|_| ()),
            };
            prop_assert_eq!(done.is_ok(), expected, "{:?}: {:?}", op, done);
            let listed: Pages = mappings(&memory, &paging)
                .map(|page| (page.address, (page.frame, page.size, page.rights)))
                .collect();
            prop_assert_eq!(&listed, &pages);
        }
        // Walks at each edge, one byte to either side.
        for (&address, &(_, size, _)) in &pages {
            let last = address + (size.bytes() - 1);
            for probe in [address.wrapping_sub(1), address, last, last.wrapping_add(1)] {
                let walked = translate(&memory, &paging, probe, Access::READ, Flags::Keep);
                let page = pages.range(..=probe).next_back();
                let inside = page.filter(|&(&start, &(_, size, _))| probe - start < size.bytes());
                let expected = inside.map(|(&start, &(frame, ..))| frame + (probe - start));
                prop_assert_eq!(walked.ok().map(|leaf| leaf.address), expected, "{:#x}", probe);
            }
        }
        for address in pages.into_keys() {
            Mapper::new(&mut memory, paging).unmap(address).unwrap();
        }
        prop_assert_eq!(memory.memory.frame_count(), 1, "only the root is left");
    }
}

#[test]
fn a_map_that_runs_out_of_tables_changes_nothing() {
    let (mut memory, paging) = empty(Kind::Ept);
    let page = Attributes::ram(Kind::Ept, Rights::RWX);
    for left in 0..3 {
        memory.left = left;
        let refused = Mapper::new(&mut memory, paging).map(0x1000, 0x1000, PageSize::Size4K, page);
        assert_eq!(refused, Err(Error::OutOfTables));
        assert_eq!((memory.memory.frame_count(), memory.left), (1, left));
        assert_eq!(memory.read_entry(paging.root), Ok(0));
    }
    memory.left = 3;
    assert_eq!(Mapper::new(&mut memory, paging).map(0x1000, 0x1000, PageSize::Size4K, page), Ok(()));
}

#[test]
fn each_refusal_names_its_reason() {
    let (mut memory, paging) = empty(Kind::Ept);
    let page = Attributes::ram(Kind::Ept, Rights::RWX);
    let mut mapper = Mapper::new(&mut memory, paging);
    let (small, large) = (PageSize::Size4K, PageSize::Size2M);
    mapper.map(0x20_0000, 0, large, page).unwrap();
    mapper.map(0x40_1000, 0x5000, small, page).unwrap();

    assert_eq!(mapper.map(0x1800, 0, small, page), Err(Error::Misaligned { address: 0x1800, size: small }));
    assert_eq!(mapper.map(0, 0x1000, large, page), Err(Error::Misaligned { address: 0x1000, size: large }));
    assert_eq!(mapper.map(1 << 48, 0, small, page), Err(Error::InputRange { address: 1 << 48, levels: 4 }));
    assert_eq!(mapper.map(0, 1 << 40, small, page), Err(Error::OutputRange { address: 1 << 40, bits: 40 }));
    let write_only = Attributes::ram(Kind::Ept, Rights::WRITE);
    assert_eq!(mapper.map(0, 0, small, write_only), Err(Error::Rights { rights: Rights::WRITE }));
    let in_large = mapper.map(0x20_1000, 0, small, page).unwrap_err();
    assert!(matches!(in_large, Error::Overlap { address: 0x20_1000, level: 2, .. }), "{in_large}");
    let over_small = mapper.map(0x40_0000, 0, large, page).unwrap_err();
    assert!(matches!(over_small, Error::Overlap { address: 0x40_0000, level: 2, .. }), "{over_small}");
    assert_eq!(mapper.unmap(0x40_0000), Err(Error::NotMapped { address: 0x40_0000 }));
    assert_eq!(mapper.unmap(0x20_1000), Err(Error::Misaligned { address: 0x20_1000, size: large }));
    assert_eq!(mapper.protect(0, Rights::RWX), Err(Error::NotMapped { address: 0 }));
    let refused = mapper.protect(0x40_1000, Rights::WRITE);
    assert_eq!(refused, Err(Error::Rights { rights: Rights::WRITE }));

    memory.memory.write_entry(paging.root + 8, 2).unwrap();
    let malformed = Mapper::new(&mut memory, paging).map(1 << 39, 0, small, page).unwrap_err();
    assert!(matches!(malformed, Error::Malformed { level: 4, entry: 2, .. }), "{malformed}");
}

#[test]
fn protect_keeps_the_flags_that_hardware_has_set() {
    let (mut memory, paging) = empty(Kind::Ept);
    let page = Attributes { software: 1 << 11, ..Attributes::ram(Kind::Ept, Rights::RWX) };
    Mapper::new(&mut memory, paging).map(0x1000, 0x1000, PageSize::Size4K, page).unwrap();
    translate(&memory, &paging, 0x1000, Access::WRITE, Flags::Set).unwrap();
    let before = Mapper::new(&mut memory, paging).protect(0x1000, Rights::READ).unwrap();
    assert_eq!(before.rights, Rights::RWX);
    let after = mappings(&memory, &paging).next().unwrap();
    assert_eq!(after.rights, Rights::READ);
    assert_eq!(after.step.entry, before.step.entry & !0b110);
    assert_eq!(after.step.entry >> 8 & 0b1011, 0b1011);
}
