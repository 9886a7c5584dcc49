//! How often tables are read: bulk operations do not look through a table for each page.

use std::cell::Cell;

use ept::{FrameAllocator, Kind, Levels, Mapper, MemoryError, PhysMemory, Rights, Sizes};
use memory_model::{AddrRange, Gpa, PageSize};

use super::world::{K4, M2, World};

/// Counts what is read and exchanged.
struct Counting {
    world: World,
    reads: Cell<u64>,
    exchanges: Cell<u64>,
}

impl PhysMemory for Counting {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.reads.set(self.reads.get() + 1);
        self.world.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.exchanges.set(self.exchanges.get() + 1);
        self.world.compare_exchange(address, current, new)
    }
    fn write_entries(&self, address: u64, entries: &[u64]) -> Result<(), MemoryError> {
        self.world.write_entries(address, entries)
    }
}

impl FrameAllocator for Counting {
    fn allocate_table(&mut self) -> Option<u64> {
        self.world.allocate_table()
    }
    fn free_table(&mut self, frame: u64) {
        self.world.free_table(frame);
    }
}

impl Counting {
    fn count<T>(&mut self, operation: impl FnOnce(&mut Mapper<'_, Self>) -> T) -> (u64, u64) {
        self.reads.set(0);
        self.exchanges.set(0);
        let paging = self.world.paging;
        operation(&mut Mapper::new(self, paging));
        (self.reads.get(), self.exchanges.get())
    }
}

#[test]
fn a_bulk_operation_reads_each_entry_once_or_twice() {
    let world = World::new(Kind::Ept, Levels::Four);
    let page = world.page(Rights::RWX);
    let mut memory = Counting { world, reads: Cell::new(0), exchanges: Cell::new(0) };
    let range = AddrRange::new(Gpa(0), (64 * M2).into()).unwrap();
    let pages = 64 * 512;
    let (reads, exchanges) =
        memory.count(|mapper| mapper.map_range(range, 0, Sizes::Only(PageSize::Size4K), page).unwrap());
    assert!(
        reads < 16 && exchanges < 4,
        "new tables are filled unread, and linked at once: {reads} {exchanges}"
    );
    let (reads, exchanges) = memory.count(|mapper| mapper.protect_range(range, Rights::READ).unwrap());
    assert!(reads < 2 * pages + 1024 && exchanges < pages + 256, "{reads} {exchanges}");
    let (reads, exchanges) = memory.count(|mapper| mapper.unmap_range(range).unwrap());
    assert!(reads < pages + 4096 && exchanges < 256, "whole tables go at once: {reads} {exchanges}");
    assert_eq!(memory.world.tables(), 1);

    // Page by page, upwards and downwards.
    for up in [true, false] {
        memory.count(|mapper| mapper.map_range(range, 0, Sizes::Only(PageSize::Size4K), page).unwrap());
        let (reads, _) = memory.count(|mapper| {
            for n in 0..pages {
                let n = if up { n } else { pages - 1 - n };
                let _ = mapper.unmap(n * K4).unwrap();
            }
        });
        assert!(reads < 24 * pages, "{reads}");
        assert_eq!(memory.world.tables(), 1);
    }
}
