//! What a walk does while memory changes under it, and where memory does not allow it.

use std::cell::Cell;

use ept::{
    Access, Attributes, Controls, Cr3, Fault, Flags, FrameAllocator, Ia32e, Kind, Levels, Mapper, MaxPhyAddr,
    MemoryError, Paging, PhysMemory, Rights, SparseMemory, mappings, walk,
};
use memory_model::PageSize;

const MACHINE: Ia32e = Ia32e::new(Levels::Four, MaxPhyAddr::MAX);

fn mapped(pages: &[(u64, u64, PageSize)]) -> (SparseMemory, Paging) {
    let mut memory = SparseMemory::allocating_from(0x10_0000);
    let cr3 = Cr3::new(memory.allocate_table().unwrap(), MaxPhyAddr::MAX).unwrap();
    let paging = Paging::ia32e(cr3, MACHINE, Controls::WP);
    for &(address, frame, size) in pages {
        let page = Attributes::ram(Kind::Ia32e, Rights::RWX | Rights::USER);
        Mapper::new(&mut memory, paging).map(address, frame, size, page).unwrap();
    }
    (memory, paging)
}

/// Memory where another processor remaps the page just before the flags of its leaf are set.
struct Remapping<'a> {
    memory: &'a SparseMemory,
    leaf: u64,
    to: Cell<Option<u64>>,
}

impl PhysMemory for Remapping<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.memory.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        if address == self.leaf
            && let Some(to) = self.to.take()
        {
            self.memory.write_entry(address, to)?;
        }
        self.memory.compare_exchange(address, current, new)
    }
}

#[test]
fn a1_a_walk_whose_leaf_changes_starts_again() {
    let (memory, paging) = mapped(&[(0x1000, 0xa000, PageSize::Size4K)]);
    let before = walk(&memory, &paging, 0x1000, Access::WRITE, Flags::Keep);
    let leaf = *before.path.last().unwrap();
    let other = leaf.entry & !0xf_f000 | 0xb_b000;
    let racing = Remapping { memory: &memory, leaf: leaf.entry_address(), to: Cell::new(Some(other)) };
    let after = walk(&racing, &paging, 0x1234, Access::WRITE, Flags::Set).outcome.unwrap();
    assert_eq!(after.address, 0xb_b234, "the old page must not be used once it is gone");
    assert_eq!(memory.read_entry(leaf.entry_address()).unwrap(), other | 1 << 5 | 1 << 6);
}

/// Tables in ROM.
struct ReadOnly<'a>(&'a SparseMemory);

impl PhysMemory for ReadOnly<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.0.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, _: u64, _: u64) -> Result<bool, MemoryError> {
        Err(MemoryError::ReadOnly { address })
    }
}

#[test]
fn flags_in_read_only_memory_are_a_fault_unless_they_are_set_already() {
    let (memory, paging) = mapped(&[(0x1000, 0xa000, PageSize::Size4K)]);
    let address = paging.root;
    let refused = walk(&ReadOnly(&memory), &paging, 0x1000, Access::WRITE, Flags::Set).outcome;
    assert_eq!(refused, Err(Fault::Memory(MemoryError::ReadOnly { address })));
    assert!(walk(&memory, &paging, 0x1000, Access::WRITE, Flags::Set).outcome.is_ok());
    assert!(walk(&ReadOnly(&memory), &paging, 0x1000, Access::WRITE, Flags::Set).outcome.is_ok());
}

#[test]
fn mappings_lists_every_page_in_order_with_merged_rights() {
    let pages = [
        (0x1000, 0xa000, PageSize::Size4K),
        (0x20_0000, 0x4000_0000, PageSize::Size2M),
        (0x4000_0000, 0x8000_0000, PageSize::Size1G),
        (0xffff_8000_0000_0000, 0xb000, PageSize::Size4K),
        (0xffff_ffff_ffff_f000, 0xc000, PageSize::Size4K),
    ];
    let (memory, paging) = mapped(&pages);
    let listed: Vec<_> =
        mappings(&memory, &paging).map(|page| (page.address, page.frame, page.size)).collect();
    assert_eq!(listed, pages);

    // Take W from the PML4 entry of the low half: it counts for all pages below.
    let top = memory.read_entry(paging.root).unwrap();
    memory.write_entry(paging.root, top & !2).unwrap();
    let writable: Vec<_> =
        mappings(&memory, &paging).map(|page| page.rights.contains(Rights::WRITE)).collect();
    assert_eq!(writable, [false, false, false, true, true]);
    for page in mappings(&memory, &paging) {
        let walk = walk(&memory, &paging, page.address, Access::READ, Flags::Keep);
        let leaf = walk.outcome.unwrap();
        assert_eq!((leaf.frame(), leaf.rights(), leaf.size), (page.frame, page.rights, page.size));
        assert_eq!(walk.path.last(), Some(&page.step));
    }
}
