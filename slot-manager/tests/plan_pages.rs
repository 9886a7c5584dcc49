//! Random trees and edits, with the slots judged page by page after every single operation.

use std::collections::BTreeSet;

use memory_model::{
    AddrRange, FlatRange, FlatView, Gpa, Hva, MemoryListener, RamBlock, RegionId, RegionTree,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use slot_manager::{
    KernelMemslots, SlotError, SlotExecutor, SlotFlags, SlotId, SlotLimits, SlotOp, SlotPlan, SlotRecord,
    SlotRegistry, plan, plan_change,
};

const PAGE: u64 = 0x1000;
/// Guest pages that are looked at; regions reach no further.
const PAGES: u64 = 20;
const BLOCKS: [u64; 2] = [0x7f00_0000_0000, 0x7f00_4000_0000];
const BLOCK_BYTES: u64 = 8 * PAGE;

/// What the guest finds on a page: the host page, and whether it is read-only.
type Page = Option<(Hva, bool)>;

/// A window on a block, put somewhere.
#[derive(Clone, Debug)]
struct Place {
    block: usize,
    offset: u64,
    bytes: u64,
    at: u64,
    priority: i32,
}

#[derive(Clone, Debug)]
enum Edit {
    Offset(u64),
    Enabled(bool),
    Readonly(bool),
}

/// Mostly page aligned, now and then off by half a page.
fn address(pages: u64) -> impl Strategy<Value = u64> {
    (0..pages, prop_oneof![24 => Just(0), 1 => Just(0x800)]).prop_map(|(page, odd)| page * PAGE + odd)
}

fn any_place() -> impl Strategy<Value = Place> {
    (0..2usize, address(6), address(7), address(12), 0..3).prop_map(|(block, offset, bytes, at, priority)| {
        Place { block, offset, bytes: bytes.max(0x800), at, priority }
    })
}

fn any_edit() -> impl Strategy<Value = (usize, Edit)> {
    let edit = prop_oneof![
        2 => address(12).prop_map(Edit::Offset),
        2 => any::<bool>().prop_map(Edit::Enabled),
        1 => any::<bool>().prop_map(Edit::Readonly),
    ];
    (any::<usize>(), edit)
}

fn any_limits() -> impl Strategy<Value = SlotLimits> {
    (select(vec![3, 6, 100, 32764]), select(vec![PAGE, 2 * PAGE, SlotLimits::MAX_BYTES]), any::<bool>())
        .prop_map(|(count, max_bytes, readonly)| SlotLimits { count, max_bytes, readonly })
}

fn build(places: &[Place]) -> (RegionTree, Vec<RegionId>) {
    let mut tree = RegionTree::new("system", 1 << 64).unwrap();
    let blocks = BLOCKS.map(|hva| {
        let block = RamBlock::foreign("block", Hva(hva), BLOCK_BYTES).unwrap();
        tree.ram("ram", block).unwrap()
    });
    let windows = places.iter().map(|place| {
        let window = tree.alias("window", blocks[place.block], place.offset, place.bytes.into()).unwrap();
        tree.add_with_priority(tree.root(), place.at, window, place.priority).unwrap();
        window
    });
    let windows = windows.collect();
    (tree, windows)
}

/// The oracle: one page of the view. A page has a slot if one range of RAM holds all of it.
fn view_page(view: &FlatView, page: u64, readonly_slots: bool) -> Page {
    let range = view.find(Gpa(page * PAGE))?;
    let whole = range.range.contains(Gpa(page * PAGE + PAGE - 1));
    let readonly = range.readonly;
    let hva = range.hva(Gpa(page * PAGE)).filter(|_| whole && (readonly_slots || !readonly))?;
    Some((hva, readonly))
}

fn view_pages(view: &FlatView, limits: &SlotLimits) -> Vec<Page> {
    (0..PAGES).map(|page| view_page(view, page, limits.readonly)).collect()
}

fn kernel_pages(kernel: &KernelMemslots) -> Vec<Page> {
    let page = |page: u64| {
        let slot = kernel.gfn_to_memslot(Gpa(page * PAGE))?;
        Some((slot.hva_of(Gpa(page * PAGE))?, slot.flags.contains(SlotFlags::READONLY)))
    };
    (0..PAGES).map(page).collect()
}

/// How many slots the view needs, counted in pages.
fn slots_needed(view: &FlatView, limits: &SlotLimits) -> u64 {
    let pages_of = |range: &FlatRange| {
        let own = (0..PAGES).filter(|page| range.range.contains(Gpa(page * PAGE)));
        own.filter(|&page| view_page(view, page, limits.readonly).is_some()).count() as u64
    };
    view.ranges().map(|range| pages_of(range).div_ceil(limits.max_bytes / PAGE)).sum()
}

/// What a listener hears of a change.
#[derive(Default)]
struct Heard {
    gone: Vec<AddrRange<Gpa>>,
    new: Vec<FlatRange>,
}

impl MemoryListener for Heard {
    fn name(&self) -> &str {
        "heard"
    }
    fn region_del(&mut self, range: &FlatRange) {
        self.gone.push(range.range);
    }
    fn region_add(&mut self, range: &FlatRange) {
        self.new.push(range.clone());
    }
}

/// Carries the plan out on the in-process kernel, and judges each page after each operation.
fn check_plan(
    plan: &SlotPlan,
    registry: &mut SlotRegistry,
    kernel: &mut KernelMemslots,
    new: &[Page],
) -> Result<(), TestCaseError> {
    let old = kernel_pages(kernel);
    let before: BTreeSet<_> = registry.ids().collect();
    let mut holes = false;
    for op in &plan.ops {
        if let SlotOp::Create(slot) = op {
            let lowest = (0..).map(SlotId).find(|&id| registry.by_id(id).is_none());
            prop_assert_eq!(Some(slot.id), lowest, "rule R2");
        }
        prop_assert!(registry.apply(op), "{}", op);
        kernel.execute(op).map_err(|error| TestCaseError::fail(error.to_string()))?;
        for (page, now) in kernel_pages(kernel).into_iter().enumerate() {
            let known = now.is_none() || now == old[page] || now == new[page];
            prop_assert!(known, "after {}: page {:#x} is {:?}", op, page, now);
            holes |= now.is_none() && old[page].is_some() && new[page].is_some();
        }
    }
    prop_assert_eq!(&kernel_pages(kernel)[..], new);
    prop_assert_eq!(kernel.slots().len(), registry.len());
    // Rule R8. A slot that moves onto its own old place makes a hole that lasts as long as the call.
    let moves_onto_itself = |op: &SlotOp| matches!(op, SlotOp::Move { slot, to } if slot.gpa.overlaps(*to));
    prop_assert_eq!(plan.needs_pause, holes || plan.ops.iter().any(moves_onto_itself));
    // No operation comes twice to one slot that was there, and none undoes another.
    let touched: Vec<_> = plan.ops.iter().filter(|op| !matches!(op, SlotOp::Create(_))).collect();
    let ids: BTreeSet<_> = touched.iter().map(|op| op.slot().id).collect();
    prop_assert_eq!(ids.len(), touched.len());
    prop_assert!(ids.is_subset(&before));
    Ok(())
}

fn check(places: &[Place], steps: &[Vec<(usize, Edit)>], limits: &SlotLimits) -> Result<(), TestCaseError> {
    let (mut tree, windows) = build(places);
    let (mut view, mut registry, mut kernel) = Default::default();
    for edits in steps {
        for (index, edit) in edits {
            let window = windows[index % windows.len()];
            match *edit {
                Edit::Offset(to) => tree.set_offset(window, to),
                Edit::Enabled(on) => tree.set_enabled(window, on),
                Edit::Readonly(on) => tree.set_readonly(window, on),
            }
            .unwrap();
        }
        let next = FlatView::render(&tree).unwrap();
        let pages = view_pages(&next, limits);
        let planned = plan(&registry, &next, limits);
        let mut heard = Heard::default();
        next.same_as(&view)
            .then_some(())
            .map_or_else(|| view.announce_change(&next, &mut heard), Ok)
            .unwrap();
        let changed = plan_change(&registry, &heard.gone, &heard.new, limits);
        let odd = pages.iter().flatten().any(|(hva, _)| hva.0 % PAGE != 0);
        match planned {
            Err(SlotError::Misaligned { .. }) => prop_assert!(odd && changed.is_err()),
            Err(SlotError::OutOfSlots { needed, .. }) => {
                prop_assert!(!odd && changed.is_err());
                prop_assert_eq!(needed, slots_needed(&next, limits));
                prop_assert!(needed > limits.count.into());
            }
            Err(error) => prop_assert!(false, "{}", error),
            Ok(plan) => {
                prop_assert!(!odd);
                // What changed alone leads to the same plan as everything.
                prop_assert_eq!(Some(&plan), changed.as_ref().ok());
                let kept: Vec<_> = registry.iter().cloned().collect();
                check_plan(&plan, &mut registry, &mut kernel, &pages)?;
                // Slots that the new view has too were left alone.
                for slot in kept.iter().filter(|slot| registry.by_id(slot.id) == Some(slot)) {
                    prop_assert!(plan.ops.iter().all(|op| op.slot().id != slot.id), "{} touched", slot);
                }
                view = next;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_step_of_a_plan_shows_each_page_as_before_as_after_or_not_at_all(
        places in vec(any_place(), 1..7),
        steps in vec(vec(any_edit(), 0..4), 1..8),
        limits in any_limits(),
    ) {
        check(&places, &steps, &limits)?;
    }
}
