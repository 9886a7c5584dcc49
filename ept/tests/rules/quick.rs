//! The fast walks against the exact one, in every format, over memory full of garbage.

use std::cell::Cell;

use ept::{
    Access, Attributes, Controls, Ept, EptCaps, Flags, Format, FrameAllocator, Ia32e, Kind, Leaf, Legacy32,
    Levels, Mapper, MaxPhyAddr, MemoryError, Pae, Paging, PhysMemory, ProtectionKeys, Rights, SparseMemory,
    nested_translate, nested_walk, translate, translate_many, walk,
};
use memory_model::{Gva, PageSize};
use proptest::prelude::*;

const FRAMES: u64 = 8;

/// A few frames of entries, which count how often they are read.
#[derive(Clone)]
struct Memory {
    entries: Vec<Cell<u64>>,
    reads: Cell<u32>,
}

impl PhysMemory for Memory {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.reads.set(self.reads.get() + 1);
        let entry = self.entries.get((address / 8) as usize);
        entry.map(Cell::get).ok_or(MemoryError::Absent { address })
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        let entry = self.entries.get((address / 8) as usize).ok_or(MemoryError::Absent { address })?;
        let same = entry.get() == current;
        if same {
            entry.set(new);
        }
        Ok(same)
    }
}

/// Random numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % sides
    }

    fn flip(&mut self) -> bool {
        self.roll(2) == 0
    }

    fn format(&mut self) -> Format {
        let levels = if self.flip() { Levels::Four } else { Levels::Five };
        let max_phy_addr = MaxPhyAddr::new([36, 46, 52][self.roll(3) as usize]).unwrap();
        let ia32e =
            Ia32e { levels, max_phy_addr, no_execute: self.flip(), page_1g: self.flip(), amd: self.flip() };
        match self.roll(8) {
            0 => Format::pae(Pae { max_phy_addr, no_execute: self.flip() }),
            1 => Format::legacy32(Legacy32 {
                page_4m: self.flip(),
                pse_36: self.flip().then_some(max_phy_addr),
            }),
            2 => Format::npt(ia32e),
            3 | 4 => Format::ia32e(ia32e),
            _ => Format::ept(Ept {
                levels,
                accessed_dirty: self.flip(),
                supervisor_shadow_stack: self.flip(),
                caps: EptCaps::from_bits_truncate(!self.roll(1 << 24)),
                max_phy_addr,
                mode_based_execute: self.flip(),
                paging_write: self.flip(),
                guest_paging_verification: self.flip(),
                sub_page_write: self.flip(),
            }),
        }
    }

    fn paging(&mut self) -> Paging {
        let controls = Controls::from_bits_truncate(self.roll(64) as u8);
        let keys = ProtectionKeys { pkru: self.roll(1 << 32) as u32 & self.roll(1 << 32) as u32, pkrs: 0xc };
        let pdptes = [0x1001, 0x2001, 0, 0x3001];
        Paging { controls, keys, pdptes, ..Paging::new(self.format(), 0x1000) }
    }

    /// An entry that mostly leads on.
    fn entry(&mut self) -> u64 {
        let mut entry = if self.roll(4) == 0 { self.roll(8) } else { 7 } | self.roll(FRAMES) << 12;
        if self.roll(5) == 0 {
            entry |= 1 << 7 | self.roll(64) << 30;
        }
        if self.roll(4) == 0 {
            entry |= self.roll(8) << 3;
        }
        if self.flip() {
            entry |= 0x360;
        }
        if self.roll(6) == 0 {
            entry |= 1 << self.roll(64);
        }
        entry
    }

    fn memory(&mut self) -> Memory {
        let entries = (0..FRAMES * 512).map(|_| Cell::new(self.entry())).collect();
        Memory { entries, reads: Cell::new(0) }
    }

    fn access(&mut self) -> Access {
        let kinds = [
            Rights::READ,
            Rights::WRITE,
            Rights::READ | Rights::WRITE,
            Rights::EXEC,
            Rights::WRITE | Rights::SHADOW_STACK,
        ];
        Access { does: kinds[self.roll(5) as usize], user: self.flip(), ac: self.flip() }
    }

    fn address(&mut self) -> u64 {
        match self.roll(8) {
            0 => self.roll(u64::MAX),
            1 => self.roll(1 << 47) | 0xffff_8000_0000_0000,
            2 | 3 => self.roll(1 << 32),
            _ => self.roll(1 << 47),
        }
    }

    fn flags(&mut self) -> Flags {
        if self.flip() { Flags::Set } else { Flags::Keep }
    }
}

/// A leaf with what it tells on demand.
fn told(leaf: Leaf) -> (Leaf, Rights, ept::Caching) {
    (leaf, leaf.rights(), leaf.caching())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn translate_is_walk_without_its_path(seed: u64) {
        let mut dice = Dice(seed);
        let (paging, exact) = (dice.paging(), dice.memory());
        let quick = exact.clone();
        for _ in 0..256 {
            let (address, access, flags) = (dice.address(), dice.access(), dice.flags());
            let slow = walk(&exact, &paging, address, access, flags).outcome;
            let fast = translate(&quick, &paging, address, access, flags);
            prop_assert_eq!(fast.map(told), slow.map(told), "{:#x} {:?}", address, access);
            prop_assert_eq!(&quick.entries, &exact.entries);
        }
    }

    #[test]
    fn a_batch_is_as_many_single_walks(seed: u64, count in 0..100_usize) {
        let mut dice = Dice(seed);
        let (paging, single) = (dice.paging(), dice.memory());
        let many = single.clone();
        let (access, flags) = (dice.access(), dice.flags());
        let addresses: Vec<_> = (0..count).map(|_| dice.address()).collect();
        let one_by_one: Vec<_> =
            addresses.iter().map(|&address| translate(&single, &paging, address, access, flags)).collect();
        let mut together = Vec::new();
        translate_many(&many, &paging, &addresses, access, flags, |outcome| together.push(outcome));
        prop_assert_eq!(many.entries, single.entries);
        // Flags that one walk sets are seen, or not yet seen, by the next.
        let page = |outcome: &Result<Leaf, _>| outcome.map(|leaf| (leaf.address, leaf.size, leaf.rights()));
        prop_assert_eq!(
            together.iter().map(page).collect::<Vec<_>>(),
            one_by_one.iter().map(page).collect::<Vec<_>>()
        );
    }

    #[test]
    fn nested_translate_is_nested_walk_without_its_paths(seed: u64) {
        let mut dice = Dice(seed);
        let (guest, second, exact) = (dice.paging(), dice.paging(), dice.memory());
        let quick = exact.clone();
        for _ in 0..64 {
            let (gva, access, flags) = (Gva(dice.address()), dice.access(), dice.flags());
            let guest = (dice.roll(8) != 0).then_some(&guest);
            let slow = nested_walk(&exact, guest, &second, gva, access, flags).outcome;
            let fast = nested_translate(&quick, guest, &second, gva, access, flags);
            prop_assert_eq!(fast, slow, "{} {:?}", gva, access);
            prop_assert_eq!(&quick.entries, &exact.entries);
        }
    }
}

/// A walk with nothing unusual about it reads each entry once: the exact walker does not start again.
#[test]
fn a_plain_walk_is_quick_in_every_64_bit_format() {
    let width = MaxPhyAddr::MAX;
    let formats = [
        Format::ia32e(Ia32e::new(Levels::Four, width)),
        Format::ia32e(Ia32e::new(Levels::Five, width)),
        Format::npt(Ia32e::new(Levels::Four, width)),
        Format::ept(Ept::new(Levels::Four, EptCaps::all(), width)),
        Format::ept(Ept { accessed_dirty: true, ..Ept::new(Levels::Five, EptCaps::all(), width) }),
    ];
    for format in formats {
        for (large, reads) in [(false, format.levels()), (true, format.levels() - 2)] {
            // One table that is its own child; its entry 1 is a large page.
            let (table, page) = if format.kind() == Kind::Ept { (0x307, 0x3b7) } else { (0x67, 0xe7) };
            let entries = vec![Cell::new(0x1000 | table); 1024];
            entries[513].set(0x4000_0000 | page);
            let memory = Memory { entries, reads: Cell::new(0) };
            let address = if large { 1 << 30 } else { 0 };
            let paging = Paging::new(format, 0x1000);
            let leaf = translate(&memory, &paging, address, Access::READ.by_user(), Flags::Set).unwrap();
            assert_eq!(leaf.size == PageSize::Size1G, large);
            assert_eq!(memory.reads.get(), u32::from(reads), "{:?}", format.kind());
        }
    }
}

/// A nested walk that has read one guest table takes a short way to the next, if that lies in the same 2 MiB.
#[test]
fn guest_tables_are_found_near_each_other_and_far_apart() {
    let orders = [
        [0x1000, 0x2000, 0x3000, 0x4000, 0x5000],
        [0x1000, 0x20_1000, 0x1_0000, 0x20_3000, 0x1000],
        [0x20_1000, 0x4000_1000, 0x20_2000, 0x3000, 0x60_1000],
    ];
    for gpas in orders {
        let mut memory = SparseMemory::allocating_from(0x100_0000);
        let root = memory.allocate_table().unwrap();
        let ept = Ept::new(Levels::Four, EptCaps::all(), MaxPhyAddr::MAX);
        let second = Paging::new(Format::ept(ept), root);
        let guest = Paging::new(Format::ia32e(Ia32e::new(Levels::Four, MaxPhyAddr::MAX)), gpas[0]);
        // The tables of the guest, root first, and its page.
        let hpas = [1, 2, 3, 4, 5].map(|n| 0x800_0000 + n * 0x1000);
        let page = Attributes::ram(Kind::Ept, Rights::RWX);
        for (n, (&gpa, &hpa)) in gpas.iter().zip(&hpas).enumerate() {
            // The page may be one of the tables.
            let _ = Mapper::new(&mut memory, second).map(gpa, hpa, PageSize::Size4K, page);
            memory.add_frame(hpa);
            if n < 4 {
                memory.write_entry(hpa, gpas[n + 1] | 7).unwrap();
            }
        }
        let gva = Gva(0x123);
        let fast = nested_translate(&memory, Some(&guest), &second, gva, Access::READ, Flags::Keep);
        let slow = nested_walk(&memory, Some(&guest), &second, gva, Access::READ, Flags::Keep).outcome;
        assert_eq!(fast, slow);
        let last = gpas.iter().position(|&gpa| gpa == gpas[4]).unwrap();
        assert_eq!(fast.unwrap().hpa.raw(), hpas[last] | 0x123, "{gpas:x?}");
    }
}
