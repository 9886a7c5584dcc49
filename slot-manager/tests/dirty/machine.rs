//! A machine whose guest is the test: it writes pages where the view shows memory.

use std::sync::{Arc, Mutex, MutexGuard};

use memory_model::{
    AddrRange, AddressSpace, DirtyClients, Gpa, Hva, MemTxAttrs, MemTxError, MmioOps, PageSize, RamBlock,
    RegionId, RegionTree,
};
use slot_manager::{DirtyMethod, DirtyPages, KernelMemslots, Recorder, SlotManager, SlotRecord};

pub const PAGE: u64 = PageSize::Size4K.bytes();
/// Pages of RAM: more than a word of a bitmap, and no multiple of one.
pub const PAGES: u64 = 150;
/// Where the window shows the first pages of RAM once more.
pub const WINDOW: u64 = 0x1000;

pub type Manager = SlotManager<Recorder<KernelMemslots>>;

pub struct Machine {
    pub space: AddressSpace,
    pub manager: Arc<Mutex<Manager>>,
    pub kernel: Recorder<KernelMemslots>,
    pub block: Arc<RamBlock>,
    pub ram: RegionId,
    /// Covers four pages of RAM when enabled: a slot becomes two.
    pub device: RegionId,
    /// Forty pages of RAM, at [`WINDOW`].
    pub window: RegionId,
}

struct NoDevice;

impl MmioOps for NoDevice {
    fn read(&self, _offset: u64, _size: u8, _attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64, _attrs: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

impl Machine {
    /// Logged by `method`, and everything is.
    pub fn new(method: DirtyMethod) -> Self {
        let kernel = Recorder::new(KernelMemslots::new());
        let mut manager = SlotManager::new(kernel.clone());
        manager.set_dirty_method(method).unwrap();
        kernel.with_inner_mut(KernelMemslots::create_vcpu);
        let manager = Arc::new(Mutex::new(manager));

        let mut tree = RegionTree::new("system", 1 << 64).unwrap();
        let block = RamBlock::foreign("ram", Hva(0x7f00_0000_0000), PAGES * PAGE).unwrap();
        let ram = tree.ram("ram", block.clone()).unwrap();
        tree.set_dirty_log(ram, DirtyClients::MIGRATION).unwrap();
        tree.add(tree.root(), 0, ram).unwrap();
        let device = tree.mmio("device", (4 * PAGE).into(), Arc::new(NoDevice)).unwrap();
        tree.add_with_priority(tree.root(), 0, device, 1).unwrap();
        tree.set_enabled(device, false).unwrap();
        let window = tree.alias("window", ram, 0, (40 * PAGE).into()).unwrap();
        tree.add(tree.root(), WINDOW * PAGE, window).unwrap();
        let space = AddressSpace::new("memory", tree).unwrap();
        space.register(manager.clone()).unwrap();
        kernel.take();
        Self { space, manager, kernel, block, ram, device, window }
    }

    pub fn manager(&self) -> MutexGuard<'_, Manager> {
        self.manager.lock().unwrap()
    }

    /// The guest writes; the host page, if the view logs it. A full ring brings the guest out, and is reaped.
    pub fn write(&self, page: u64) -> Option<Hva> {
        let gpa = Gpa(page * PAGE);
        let view = self.space.view();
        let range = view.find(gpa).filter(|range| range.ram().is_some())?;
        while !self.kernel.with_inner(|kernel| kernel.mark_page_dirty(Some(0), 0, gpa)) {
            self.manager().reap().unwrap();
        }
        range.hva(gpa).filter(|_| !range.dirty_mask.is_empty())
    }

    pub fn collect(&self, range: AddrRange<Gpa>) -> Vec<Hva> {
        hvas(&self.manager().collect_dirty(range).unwrap())
    }

    pub fn collect_all(&self) -> Vec<Hva> {
        hvas(&self.manager().collect_all_dirty().unwrap())
    }

    /// The host address of a page of RAM.
    pub fn hva(&self, page: u64) -> Hva {
        Hva(self.block.hva().0 + page * PAGE)
    }
}

/// Guest pages `first` to `first + count - 1`.
pub fn pages(first: u64, count: u64) -> AddrRange<Gpa> {
    AddrRange::new(Gpa(first * PAGE), u128::from(count * PAGE)).unwrap()
}

/// The host pages of what was collected, each once, ascending.
pub fn hvas(dirty: &DirtyPages) -> Vec<Hva> {
    let of_slot = dirty.slots().iter().flat_map(|pages| {
        pages.pages().map(|gpa| pages.slot().hva_of(gpa).expect("a dirty page lies in its slot"))
    });
    let mut all: Vec<_> = of_slot.collect();
    all.sort_unstable();
    all.dedup();
    all
}
