//! The manager behind an address space: what reaches the kernel, and what a failure leaves behind.

use std::error::Error;
use std::sync::{Arc, Mutex};

use memory_model::{
    AddressSpace, Hva, MemTxAttrs, MemTxError, MemoryError, MemoryListener, MmioOps, RamBlock, RegionId,
    RegionTree,
};
use slot_manager::{
    Errno, KernelMemslots, Memslot, Recorder, SlotError, SlotExecutor, SlotLimits, SlotManager, SlotOp,
};

struct NoDevice;

impl MmioOps for NoDevice {
    fn read(&self, _offset: u64, _size: u8, _attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64, _attrs: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

struct Bench {
    space: AddressSpace,
    recorder: Recorder<KernelMemslots>,
    slots: Arc<Mutex<SlotManager<Recorder<KernelMemslots>>>>,
    /// Memory at 0, a device that cuts it in two when enabled, and a window that can be moved.
    device: RegionId,
    window: RegionId,
}

fn bench() -> Bench {
    let recorder = Recorder::new(KernelMemslots::new());
    let slots = Arc::new(Mutex::new(SlotManager::new(recorder.clone())));
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let block = RamBlock::foreign("pc.ram", Hva(0x7f00_0000_0000), 0x10_0000).unwrap();
    let ram = tree.ram("pc.ram", block).unwrap();
    tree.add(tree.root(), 0, ram).unwrap();
    let device = tree.mmio("vga", 0x2_0000, Arc::new(NoDevice)).unwrap();
    tree.add_with_priority(tree.root(), 0xa_0000, device, 1).unwrap();
    tree.set_enabled(device, false).unwrap();
    let window = tree.alias("window", ram, 0x4_0000, 0x1_0000).unwrap();
    tree.add(tree.root(), 0x8000_0000, window).unwrap();
    let space = AddressSpace::new("memory", tree).unwrap();
    space.register(slots.clone()).unwrap();
    recorder.take();
    Bench { space, recorder, slots, device, window }
}

impl Bench {
    /// Two deletions' worth of change: the device splits the memory, and the window goes.
    fn update(&self) -> Result<(), MemoryError> {
        self.space.update(|tree| {
            tree.set_enabled(self.device, true)?;
            tree.set_offset(self.window, 0x9000_0000)
        })
    }

    fn memslots(&self) -> Vec<Memslot> {
        self.recorder.with_inner(|kernel| kernel.slots().iter().copied().collect())
    }

    /// The kernel's slots, the registry and the view show the same.
    fn assert_in_step(&self) {
        let view = self.space.view();
        let slots = self.slots.lock().unwrap();
        let registry = slots.registry();
        assert_eq!(registry.len(), view.ranges().filter(|range| range.ram().is_some()).count());
        for (slot, memslot) in registry.iter().zip(self.memslots()) {
            assert_eq!((slot.id, slot.gpa, slot.hva), (memslot.id, memslot.gpa, memslot.userspace_addr));
            let range = view.find(slot.gpa.first()).unwrap();
            assert_eq!((range.range, range.hva(slot.gpa.first())), (slot.gpa, Some(slot.hva)));
        }
        assert_eq!(registry.len(), self.memslots().len());
    }
}

fn text(ops: &[SlotOp]) -> Vec<String> {
    ops.iter().map(SlotOp::to_string).collect()
}

/// The slot error behind a refused update.
fn slot_error(error: &MemoryError) -> &SlotError {
    error.source().and_then(|source| source.downcast_ref()).expect("a slot error")
}

const SPLIT: [&str; 4] = [
    "delete slot 0 (pc.ram at 0x0-0xfffff -> 0x7f0000000000)",
    "move slot 1 (pc.ram at 0x80000000-0x8000ffff -> 0x7f0000040000) to 0x90000000-0x9000ffff",
    "create slot 0 (pc.ram at 0x0-0x9ffff -> 0x7f0000000000)",
    "create slot 2 (pc.ram at 0xc0000-0xfffff -> 0x7f00000c0000)",
];

#[test]
fn r8_one_transaction_is_one_plan_and_touches_only_what_changed() {
    let bench = bench();
    bench.assert_in_step();
    bench.update().unwrap();
    assert_eq!(text(&bench.recorder.take()), SPLIT);
    bench.assert_in_step();
    bench.space.update(|tree| tree.set_offset(bench.window, 0x8000_0000)).unwrap();
    assert_eq!(bench.recorder.take().len(), 1);
    bench.space.update(|tree| tree.set_enabled(bench.window, true)).unwrap();
    assert_eq!(bench.recorder.take(), []);
    bench.space.unregister(&bench.slots).unwrap();
    assert!(bench.memslots().is_empty());
}

#[test]
fn a_failure_at_any_step_is_undone_and_the_old_view_stays_in_force() {
    for (step, refused) in SPLIT.iter().enumerate() {
        let bench = bench();
        let (view, memslots) = (bench.space.view(), bench.memslots());
        bench.recorder.refuse(step, Errno::ENOMEM);
        let error = bench.update().unwrap_err();
        assert_eq!(slot_error(&error).to_string(), format!("cannot {refused}: ENOMEM"));
        assert_eq!(bench.recorder.take().len(), 2 * step + 1);
        assert!(bench.space.view().same_as(&view));
        assert_eq!(bench.memslots(), memslots);
        bench.assert_in_step();
        // The same update goes through once the kernel is willing.
        bench.update().unwrap();
        assert_eq!(text(&bench.recorder.take()), SPLIT);
        bench.assert_in_step();
    }
}

#[test]
fn a_failing_undo_says_what_stands_and_the_next_update_mends_it() {
    let bench = bench();
    bench.recorder.refuse(3, Errno::ENOMEM);
    bench.recorder.refuse(4, Errno::EINTR);
    let error = bench.update().unwrap_err();
    let SlotError::Torn { cause, standing } = slot_error(&error) else { panic!("{error}") };
    assert_eq!(cause.to_string(), format!("cannot {}: ENOMEM", SPLIT[3]));
    // The first creation could not be taken back, so the slot it replaced has no room.
    let (ops, errors): (Vec<_>, Vec<_>) = standing.iter().map(|(op, error)| (op.to_string(), error)).unzip();
    assert_eq!(ops, [SPLIT[2], SPLIT[0]]);
    assert_eq!(
        errors[0].to_string(),
        "cannot delete slot 0 (pc.ram at 0x0-0x9ffff -> 0x7f0000000000): EINTR"
    );
    assert_eq!(
        errors[1].to_string(),
        "cannot create slot 0 (pc.ram at 0x0-0xfffff -> 0x7f0000000000): EEXIST"
    );
    let listed = slot_error(&error).to_string();
    assert!(ops.iter().all(|op| listed.contains(op)), "{listed}");
    // The registry shows what stands.
    let registry: Vec<_> =
        bench.slots.lock().unwrap().registry().iter().map(|slot| (slot.id, slot.gpa)).collect();
    assert_eq!(registry, bench.memslots().iter().map(|slot| (slot.id, slot.gpa)).collect::<Vec<_>>());
    bench.recorder.take();

    // Any update leads back into step, though this one is about the window alone.
    bench.space.update(|tree| tree.set_enabled(bench.window, false)).unwrap();
    let mended = text(&bench.recorder.take());
    assert_eq!(mended.len(), 3, "{mended:?}");
    bench.assert_in_step();
}

#[test]
fn r2_a_view_that_needs_too_many_slots_is_refused_without_a_call() {
    let limits = SlotLimits { count: 1, ..KernelMemslots::new().limits() };
    let recorder = Recorder::with_limits(KernelMemslots::new(), limits);
    let executor: Box<dyn SlotExecutor> = Box::new(recorder.clone());
    let slots = Arc::new(Mutex::new(SlotManager::new(executor)));
    let Bench { space, .. } = bench();
    let error = space.register(slots).unwrap_err();
    assert_eq!(error.to_string(), "slots refused the new view");
    let text = "pc.ram at 0x80000000-0x8000ffff: no slot is left, 2 are needed and 1 allowed";
    assert_eq!(slot_error(&error).to_string(), text);
    assert_eq!(recorder.take(), []);
}

#[test]
fn a_transaction_that_was_cut_short_leaves_nothing_for_the_next() {
    let bench = bench();
    let view = bench.space.view();
    let mut slots = bench.slots.lock().unwrap();
    slots.begin();
    slots.region_del(view.ranges().next().unwrap());
    slots.begin();
    slots.commit().unwrap();
    assert_eq!(bench.recorder.take(), []);
}

#[test]
fn the_memory_of_a_slot_stays_mapped_as_long_as_the_slot_lives() {
    let block = RamBlock::anonymous("ram", 0x1000).unwrap();
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let ram = tree.ram("ram", block.clone()).unwrap();
    tree.add(tree.root(), 0, ram).unwrap();
    let space = AddressSpace::new("memory", tree).unwrap();
    let slots = Arc::new(Mutex::new(SlotManager::new(KernelMemslots::new())));
    space.register(slots.clone()).unwrap();
    let memory = Arc::downgrade(&block);
    drop((space, block));
    assert!(memory.upgrade().is_some(), "the kernel still has a slot there");
    drop(slots);
    assert!(memory.upgrade().is_none());
}
