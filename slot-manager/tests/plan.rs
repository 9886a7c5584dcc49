//! The planner's rules, one by one.

use std::sync::Arc;

use memory_model::{
    FlatView, Hva, MemTxAttrs, MemTxError, MmioOps, PageSize, RamBlock, RegionId, RegionTree,
};
use slot_manager::{
    MAX_PAGES, Slot, SlotError, SlotFlags, SlotId, SlotLimits, SlotOp, SlotPlan, SlotRegistry, plan,
};

const PAGE: u64 = PageSize::Size4K.bytes();
const LIMITS: SlotLimits = SlotLimits { count: 32764, max_bytes: SlotLimits::MAX_BYTES, readonly: true };

struct NoDevice;

impl MmioOps for NoDevice {
    fn read(&self, _offset: u64, _size: u8, _attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64, _attrs: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

/// A tree with RAM of `bytes` bytes at `hva`, not yet placed.
fn tree_with_ram(hva: u64, bytes: u64) -> (RegionTree, RegionId) {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let ram = tree.ram("ram", RamBlock::foreign("ram", Hva(hva), bytes).unwrap()).unwrap();
    (tree, ram)
}

fn registry(plan: &SlotPlan) -> SlotRegistry {
    let mut registry = SlotRegistry::default();
    assert!(plan.ops.iter().all(|op| registry.apply(op)));
    registry
}

/// The plan from nothing to what `tree` shows.
fn first_plan(tree: &RegionTree, limits: &SlotLimits) -> Result<SlotPlan, SlotError> {
    plan(&SlotRegistry::default(), &FlatView::render(tree).unwrap(), limits)
}

/// Number, first and last guest page, host address.
fn shapes<'a>(slots: impl Iterator<Item = &'a Slot>) -> Vec<(u32, u64, u64, u64)> {
    slots.map(|slot| (slot.id.0, slot.gpa.first().0, slot.gpa.last().0, slot.hva.0)).collect()
}

#[test]
fn r1_whole_pages_inwards_and_the_host_address_shifted_alike() {
    for (bytes, expected) in [(0x1000, vec![]), (0x2000, vec![(0, 0x1000, 0x1fff, 0x70_0000)])] {
        let (mut tree, ram) = tree_with_ram(0x70_0000, 0x1_0000);
        let part = tree.alias("part", ram, 0x800, bytes).unwrap();
        tree.add(tree.root(), 0x800, part).unwrap();
        // The region starts 0x800 into the block, so its first whole page is the block's second.
        let plan = first_plan(&tree, &LIMITS).unwrap();
        let expected: Vec<_> =
            expected.into_iter().map(|(id, first, last, hva)| (id, first, last, hva + 0x1000)).collect();
        assert_eq!(shapes(registry(&plan).iter()), expected);
    }
}

#[test]
fn guest_and_host_pages_that_do_not_start_together_are_an_error() {
    let (mut tree, ram) = tree_with_ram(0x70_0000, 0x1_0000);
    let odd = tree.alias("odd", ram, 0x800, 0x4000).unwrap();
    tree.add(tree.root(), 0x1000, odd).unwrap();
    let error = first_plan(&tree, &LIMITS).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ram at 0x1000-0x4fff: its page 0x1000 lies at 0x700800, which is not the start of a page"
    );
}

#[test]
fn r2_the_lowest_free_numbers_are_given_out_and_come_back() {
    let (mut tree, ram) = tree_with_ram(0x70_0000, 0x1_0000);
    let places: Vec<_> = (0..4u64)
        .map(|index| {
            let part = tree.alias("part", ram, index * PAGE, PAGE.into()).unwrap();
            tree.add(tree.root(), index * 0x10_0000, part).unwrap();
            part
        })
        .collect();
    let four = registry(&first_plan(&tree, &LIMITS).unwrap());
    assert!(four.ids().eq((0..4).map(SlotId)));
    tree.set_enabled(places[1], false).unwrap();
    let new = tree.alias("new", ram, 0x8000, 0x2000).unwrap();
    tree.add(tree.root(), 0x80_0000, new).unwrap();
    let plan = plan(&four, &FlatView::render(&tree).unwrap(), &LIMITS).unwrap();
    let ids: Vec<_> = plan.ops.iter().map(|op| (op.slot().id.0, op.slot().gpa.first().0)).collect();
    assert_eq!(ids, [(1, 0x10_0000), (1, 0x80_0000)]);
}

#[test]
fn r2_exhaustion_is_an_error_before_the_first_operation() {
    let (mut tree, ram) = tree_with_ram(0x70_0000, 0x1_0000);
    for index in 0..4 {
        let part = tree.alias("part", ram, index * PAGE, PAGE.into()).unwrap();
        tree.add(tree.root(), index * 0x10_0000, part).unwrap();
    }
    let error = first_plan(&tree, &SlotLimits { count: 2, ..LIMITS }).unwrap_err();
    let text = "ram at 0x200000-0x200fff: no slot is left, 4 are needed and 2 allowed";
    assert_eq!(error.to_string(), text);
    // A block of nearly 2^64 bytes in slots of a page: counted, not tried.
    let (mut tree, ram) = tree_with_ram(0, u64::MAX - 0xfff);
    tree.add(tree.root(), 0, ram).unwrap();
    let error = first_plan(&tree, &SlotLimits { max_bytes: 0, ..LIMITS }).unwrap_err();
    assert!(matches!(error, SlotError::OutOfSlots { needed, .. } if needed == (1 << 52) - 1), "{error}");
}

#[test]
fn r3_memory_longer_than_a_slot_is_split() {
    let (mut tree, ram) = tree_with_ram(0x70_0000, 0x5000);
    tree.add(tree.root(), 0x1000, ram).unwrap();
    let plan = first_plan(&tree, &SlotLimits { max_bytes: 0x2fff, ..LIMITS }).unwrap();
    let expected =
        [(0, 0x1000, 0x2fff, 0x70_0000), (1, 0x3000, 0x4fff, 0x70_2000), (2, 0x5000, 0x5fff, 0x70_4000)];
    assert_eq!(shapes(registry(&plan).iter()), expected);
    // The kernel takes the longest slot there is, and the next one starts at a whole GiB.
    assert_eq!(SlotLimits::MAX_BYTES % PageSize::Size1G.bytes(), 0);
    assert_eq!((MAX_PAGES * PAGE - SlotLimits::MAX_BYTES) / PageSize::Size1G.bytes(), 0);
}

#[test]
fn r4_devices_have_no_slot_and_read_only_memory_only_where_the_kernel_can() {
    let (mut tree, ram) = tree_with_ram(0x70_0000, 0x1000);
    tree.set_readonly(ram, true).unwrap();
    tree.add(tree.root(), 0, ram).unwrap();
    let device = tree.mmio("device", 0x1000, Arc::new(NoDevice)).unwrap();
    tree.add(tree.root(), 0x1000, device).unwrap();
    let with = registry(&first_plan(&tree, &LIMITS).unwrap());
    assert_eq!(shapes(with.iter()), [(0, 0, 0xfff, 0x70_0000)]);
    assert_eq!(with.by_id(SlotId(0)).unwrap().flags, SlotFlags::READONLY);
    let without = first_plan(&tree, &SlotLimits { readonly: false, ..LIMITS }).unwrap();
    assert_eq!(without, SlotPlan::default());
}

#[test]
fn r6_read_only_is_a_new_slot_dirty_logging_is_not() {
    let (mut tree, ram) = tree_with_ram(0x70_0000, 0x1000);
    tree.add(tree.root(), 0, ram).unwrap();
    let present = registry(&first_plan(&tree, &LIMITS).unwrap());
    let slot = present.by_id(SlotId(0)).unwrap().clone();
    tree.set_readonly(ram, true).unwrap();
    let readonly = plan(&present, &FlatView::render(&tree).unwrap(), &LIMITS).unwrap();
    let new = Slot { flags: SlotFlags::READONLY, ..slot.clone() };
    assert_eq!(readonly.ops, [SlotOp::Delete(slot.clone()), SlotOp::Create(new)]);
    assert!(readonly.needs_pause);

    tree.set_readonly(ram, false).unwrap();
    let mut logged = present.clone();
    let start = SlotOp::SetFlags { slot: slot.clone(), flags: SlotFlags::LOG_DIRTY_PAGES };
    assert!(logged.apply(&start));
    let stop = plan(&logged, &FlatView::render(&tree).unwrap(), &LIMITS).unwrap();
    assert_eq!(stop, SlotPlan { ops: vec![start.inverse()], needs_pause: false });
}

#[test]
fn r8_a_split_deletes_first_and_needs_a_pause_growth_elsewhere_does_not() {
    let (mut tree, ram) = tree_with_ram(0x70_0000, 0x5000);
    tree.add(tree.root(), 0, ram).unwrap();
    let present = registry(&first_plan(&tree, &LIMITS).unwrap());
    let mirror = tree.alias("mirror", ram, 0, 0x5000).unwrap();
    tree.add(tree.root(), 0x10_0000, mirror).unwrap();
    let growth = plan(&present, &FlatView::render(&tree).unwrap(), &LIMITS).unwrap();
    assert_eq!((growth.ops.len(), growth.needs_pause), (1, false));

    let device = tree.mmio("device", 0x1000, Arc::new(NoDevice)).unwrap();
    tree.add_with_priority(tree.root(), 0x2000, device, 1).unwrap();
    tree.remove(mirror).unwrap();
    let split = plan(&present, &FlatView::render(&tree).unwrap(), &LIMITS).unwrap();
    let kinds: Vec<_> = split.ops.iter().map(|op| op.to_string()).collect();
    let expected = [
        "delete slot 0 (ram at 0x0-0x4fff -> 0x700000)",
        "create slot 0 (ram at 0x0-0x1fff -> 0x700000)",
        "create slot 1 (ram at 0x3000-0x4fff -> 0x703000)",
    ];
    assert_eq!(kinds, expected);
    assert!(split.needs_pause);
}

#[test]
fn memory_that_moves_is_moved_by_one_call_unless_its_new_place_is_taken() {
    let (mut tree, ram) = tree_with_ram(0x70_0000, 0x2000);
    tree.add(tree.root(), 0x1000, ram).unwrap();
    let present = registry(&first_plan(&tree, &LIMITS).unwrap());
    for (to, needs_pause) in [(0x10_0000, false), (0x2000, true)] {
        tree.set_offset(ram, to).unwrap();
        let plan = plan(&present, &FlatView::render(&tree).unwrap(), &LIMITS).unwrap();
        let moved: Vec<_> = plan.ops.iter().map(|op| op.to_string()).collect();
        let last = to + 0x1fff;
        assert_eq!(moved, [format!("move slot 0 (ram at 0x1000-0x2fff -> 0x700000) to {to:#x}-{last:#x}")]);
        assert_eq!(plan.needs_pause, needs_pause);
    }
    // Two that change places: neither can go first.
    tree.set_offset(ram, 0x1000).unwrap();
    let other = tree.ram("other", RamBlock::foreign("other", Hva(0x90_0000), 0x2000).unwrap()).unwrap();
    tree.add(tree.root(), 0x5000, other).unwrap();
    let blocks: Vec<_> = first_plan(&tree, &LIMITS).unwrap().ops;
    let mut present = SlotRegistry::default();
    assert!(blocks.iter().all(|op| present.apply(op)));
    tree.set_offset(ram, 0x5000).unwrap();
    tree.set_offset(other, 0x1000).unwrap();
    let swap = plan(&present, &FlatView::render(&tree).unwrap(), &LIMITS).unwrap();
    assert!(matches!(
        swap.ops[..],
        [SlotOp::Delete(_), SlotOp::Delete(_), SlotOp::Create(_), SlotOp::Create(_)]
    ));
}
