//! A guest with tables of its own, behind an EPT, and processors that remember translations.

use std::cell::Cell;

use ept::tlb::{LinearSpace, Tlb};
use ept::{
    Access, Attributes, Controls, Cr3, EptCaps, Eptp, Flags, FrameAllocator, Ia32e, Kind, Levels, Mapper,
    MaxPhyAddr, MemoryError, NestedFault, NestedLeaf, Paging, PhysMemory, Rights, SparseMemory, nested_walk,
};
use memory_model::{Gva, PageSize};

pub const WIDTH: MaxPhyAddr = MaxPhyAddr::new(46).unwrap();
pub const CAPS: EptCaps = EptCaps::all();
pub const FULL: Rights = Rights::RWX.union(Rights::USER);
/// Where guest-physical 0 lies in the host, in [`World::second`] and in [`World::other`].
pub const RAM: u64 = 0x4000_0000;
pub const OTHER_RAM: u64 = 0x8000_0000;
/// Guest-physical memory of each.
pub const RAM_BYTES: u64 = 64 * PAGE;
pub const PAGE: u64 = 0x1000;
/// Linear page `n` is at `FIRST + n * PAGE`, and starts out at guest-physical `DATA + n * PAGE`.
pub const FIRST: u64 = 0x40_0000;
pub const DATA: u64 = 0x2_0000;
pub const PAGES: u64 = 8;

/// Memory that counts how often it is read.
pub struct Counting {
    pub memory: SparseMemory,
    pub reads: Cell<u32>,
}

impl PhysMemory for Counting {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.reads.set(self.reads.get() + 1);
        self.memory.read_entry(address)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.memory.compare_exchange(address, current, new)
    }
}

/// A guest's memory, at one stretch of the host's.
struct GuestMemory<'a>(&'a mut SparseMemory, u64, u64);

impl PhysMemory for GuestMemory<'_> {
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        self.0.read_entry(address + self.1)
    }
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<bool, MemoryError> {
        self.0.compare_exchange(address + self.1, current, new)
    }
}

impl FrameAllocator for GuestMemory<'_> {
    fn allocate_table(&mut self) -> Option<u64> {
        self.2 += PAGE;
        Some(self.2)
    }
    fn free_table(&mut self, _: u64) {}
}

pub struct World {
    pub memory: Counting,
    pub guest: Paging,
    pub second: Paging,
    pub eptp: Eptp,
    /// Another second level, over other memory with the same contents.
    pub other: Paging,
    pub other_eptp: Eptp,
    pub tlb: Tlb,
}

/// With `software` bits in each leaf of the guest.
pub fn world(software: u64) -> World {
    let mut memory = SparseMemory::allocating_from(0x10_0000);
    let levels = [RAM, OTHER_RAM].map(|ram| {
        (0..RAM_BYTES).step_by(PAGE as usize).for_each(|offset| memory.add_frame(ram + offset));
        let root = memory.allocate_table().unwrap();
        let eptp = Eptp::for_root(root, Levels::Four, true, CAPS, WIDTH).unwrap();
        let second = Paging::ept(eptp, CAPS, WIDTH);
        let page = Attributes::ram(Kind::Ept, Rights::RWX);
        for gpa in (0..RAM_BYTES).step_by(PAGE as usize) {
            Mapper::new(&mut memory, second).map(gpa, ram + gpa, PageSize::Size4K, page).unwrap();
        }
        (second, eptp)
    });
    let processor = Ia32e::new(Levels::Four, WIDTH);
    let guest = Paging::ia32e(Cr3::new(PAGE, WIDTH).unwrap(), processor, Controls::WP);
    for ram in [RAM, OTHER_RAM] {
        let mut inside = GuestMemory(&mut memory, ram, PAGE);
        let page = Attributes { software, ..Attributes::ram(Kind::Ia32e, FULL) };
        for n in 0..PAGES {
            let (gva, gpa) = (FIRST + n * PAGE, DATA + n * PAGE);
            Mapper::new(&mut inside, guest).map(gva, gpa, PageSize::Size4K, page).unwrap();
        }
    }
    let [(second, eptp), (other, other_eptp)] = levels;
    let memory = Counting { memory, reads: Cell::new(0) };
    World { memory, guest, second, eptp, other, other_eptp, tlb: Tlb::new(256, 256) }
}

/// Linear page `n`.
pub fn page(n: u64) -> Gva {
    Gva(FIRST + n * PAGE)
}

impl World {
    /// Through what is remembered, in that space.
    pub fn access_in(
        &mut self,
        space: LinearSpace,
        gva: Gva,
        access: Access,
    ) -> Result<NestedLeaf, NestedFault> {
        let Self { memory, guest, second, tlb, .. } = self;
        tlb.nested(memory, Some(guest), second, space, gva, access, Flags::Set)
    }

    pub fn access(&mut self, gva: Gva, access: Access) -> Result<NestedLeaf, NestedFault> {
        self.access_in(LinearSpace::default(), gva, access)
    }

    /// Host-physical address of a read.
    pub fn read(&mut self, gva: Gva) -> u64 {
        self.access(gva, Access::READ).unwrap().hpa.raw()
    }

    /// The same by the tables as they are.
    pub fn fresh(&self, gva: Gva, access: Access) -> Result<NestedLeaf, NestedFault> {
        let Self { memory, guest, second, .. } = self;
        nested_walk(memory, Some(guest), second, gva, access, Flags::Keep).outcome
    }

    /// Sets the accessed flags that a read sets, as another processor would.
    pub fn mark(&self, gva: Gva) {
        let Self { memory, guest, second, .. } = self;
        nested_walk(memory, Some(guest), second, gva, Access::READ, Flags::Set).outcome.unwrap();
    }

    /// How many entries `work` reads.
    pub fn reads(&mut self, work: impl FnOnce(&mut Self)) -> u32 {
        self.memory.reads.set(0);
        work(self);
        self.memory.reads.get()
    }

    /// Where the second level keeps the leaf of that guest-physical page.
    pub fn ept_leaf(&self, gpa: u64) -> u64 {
        let walk = ept::walk(&self.memory, &self.second, gpa, Access::READ, Flags::Keep);
        walk.path.last().unwrap().entry_address()
    }

    /// Where the host keeps the guest's entry of that level for that address.
    pub fn guest_entry(&self, gva: Gva, level: u8) -> u64 {
        let Self { memory, guest, second, .. } = self;
        let walk = nested_walk(memory, Some(guest), second, gva, Access::READ, Flags::Keep);
        RAM + walk.guest.iter().find(|step| step.level == level).unwrap().entry_address()
    }

    pub fn entry(&self, at: u64) -> u64 {
        self.memory.memory.read_entry(at).unwrap()
    }

    /// Changes an entry, and tells nobody.
    pub fn change(&self, at: u64, new: impl Fn(u64) -> u64) {
        self.memory.memory.write_entry(at, new(self.entry(at))).unwrap();
    }
}
