//! The rules of the flat view, one test each, numbered as the rules are; and trees of unusual shapes. Rule R15
//! as a whole is the oracle's.

use std::sync::Arc;

use memory_model::{
    AddrRange, AddressSpace, DirtyClients, FlatView, Gpa, Hva, MemoryError, RamBlock, RegionId, RegionTree,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn tree() -> RegionTree {
    RegionTree::new("system", 1 << 64).unwrap()
}

fn text(view: &FlatView) -> Vec<String> {
    view.ranges().map(|range| format!("{} {}@{:#x}", range.range, range.name, range.offset)).collect()
}

fn rendered(tree: &RegionTree) -> Vec<String> {
    text(&FlatView::render(tree).unwrap())
}

/// The figures A to C of QEMU's memory API documentation: overlapping containers and what shows through.
#[test]
fn r15_an_empty_answer_falls_to_the_next_sibling() {
    let mut tree = tree();
    let add = |tree: &mut RegionTree, parent: RegionId, name: &str, at, size, priority| {
        let id = tree.reservation(name, size).unwrap();
        tree.add_with_priority(parent, at, id, priority).unwrap();
        id
    };
    let a = tree.container("a", 0x8000).unwrap();
    tree.add(tree.root(), 0, a).unwrap();
    add(&mut tree, a, "c", 0, 0x6000, 1);
    let b = tree.container("b", 0x4000).unwrap();
    tree.add_with_priority(a, 0x2000, b, 2).unwrap();
    add(&mut tree, b, "d", 0, 0x1000, 0);
    add(&mut tree, b, "e", 0x2000, 0x1000, 0);
    let expected = [
        "0x0-0x1fff c@0x0",
        "0x2000-0x2fff d@0x0",
        "0x3000-0x3fff c@0x3000",
        "0x4000-0x4fff e@0x0",
        "0x5000-0x5fff c@0x5000",
    ];
    assert_eq!(rendered(&tree), expected);
    // The low byte of b hidden by d alone; with c above b, b does not show at all.
    let c = tree.iter().find(|(_, region)| &**region.name() == "c").unwrap().0;
    tree.set_priority(c, 3).unwrap();
    assert_eq!(rendered(&tree), ["0x0-0x5fff c@0x0"]);
}

#[test]
fn r16_ranges_ascend_without_overlap_and_are_merged() {
    let mut tree = tree();
    let ram = tree.ram("ram", RamBlock::foreign("ram", Hva(0x1000), 0x10_0000).unwrap()).unwrap();
    for piece in (0..16).rev() {
        let alias = tree.alias("piece", ram, piece * 0x1000, 0x1000).unwrap();
        tree.add(tree.root(), 0x8000 + piece * 0x1000, alias).unwrap();
    }
    assert_eq!(rendered(&tree), ["0x8000-0x17fff ram@0x0"]);
}

#[test]
fn r17_neighbours_merge_only_if_nothing_tells_them_apart() {
    let build = |change: &dyn Fn(&mut RegionTree, RegionId, RegionId)| {
        let mut tree = tree();
        let ram = tree.ram("ram", RamBlock::foreign("ram", Hva(0x1000), 0x2000).unwrap()).unwrap();
        let low = tree.alias("low", ram, 0, 0x1000).unwrap();
        let high = tree.alias("high", ram, 0x1000, 0x1000).unwrap();
        tree.add(tree.root(), 0, low).unwrap();
        tree.add(tree.root(), 0x1000, high).unwrap();
        change(&mut tree, ram, high);
        rendered(&tree).len()
    };
    assert_eq!(build(&|_, _, _| {}), 1);
    assert_eq!(build(&|tree, _, high| tree.set_readonly(high, true).unwrap()), 2);
    assert_eq!(build(&|tree, _, high| tree.set_nonvolatile(high, true).unwrap()), 2);
    assert_eq!(build(&|tree, _, high| tree.set_unmergeable(high, true).unwrap()), 2);
    assert_eq!(build(&|tree, ram, _| tree.set_unmergeable(ram, true).unwrap()), 2, "neither may be");
    assert_eq!(build(&|tree, _, high| tree.set_alias_offset(high, 0x800).unwrap()), 2);
    assert_eq!(build(&|tree, _, high| tree.set_offset(high, 0x1001).unwrap()), 2);
    // The mask comes from the leaf, so both have it.
    assert_eq!(build(&|tree, ram, _| tree.set_dirty_log(ram, DirtyClients::VGA).unwrap()), 1);
}

#[test]
fn r17_an_unmergeable_region_is_of_one_piece_again_once_nothing_covers_it() {
    let mut tree = tree();
    let big = tree.reservation("big", 0x3000).unwrap();
    tree.set_unmergeable(big, true).unwrap();
    tree.add(tree.root(), 0, big).unwrap();
    let over = tree.reservation("over", 0x1000).unwrap();
    tree.add_with_priority(tree.root(), 0x1000, over, 1).unwrap();
    let space = AddressSpace::new("memory", tree).unwrap();
    assert_eq!(space.view().len(), 3);
    space.update(|tree| tree.remove(over)).unwrap();
    assert_eq!(text(&space.view()), ["0x0-0x2fff big@0x0"]);
}

#[test]
fn r18_roots_that_reduce_to_one_region_share_one_view() {
    let mut tree = tree();
    let memory = tree.container("memory", 1 << 64).unwrap();
    let [one, two] = ["one", "two"].map(|name| tree.reservation(name, 0x1000).unwrap());
    tree.add(memory, 0x1000, one).unwrap();
    tree.add(memory, 0x5000, two).unwrap();
    tree.add(tree.root(), 0, memory).unwrap();
    let bus_master = tree.container("bus master", 1 << 64).unwrap();
    let window = tree.alias("window", memory, 0, 1 << 64).unwrap();
    tree.add(bus_master, 0, window).unwrap();
    let part = tree.alias("part", memory, 0, 0x8000).unwrap();
    let shifted = tree.alias("shifted", memory, 0x1000, 1 << 64).unwrap();
    let rom = tree.alias("rom", memory, 0, 1 << 64).unwrap();
    tree.set_readonly(rom, true).unwrap();

    let system = AddressSpace::new("system", tree).unwrap();
    let device = system.sibling("device", bus_master).unwrap();
    let shares = |other: &AddressSpace| Arc::ptr_eq(&system.view(), &other.view());
    assert!(shares(&device) && shares(&system.sibling("memory", memory).unwrap()));
    assert!(!shares(&system.sibling("part", part).unwrap()), "an alias of a part");
    assert!(!shares(&system.sibling("shifted", shifted).unwrap()), "an alias that begins elsewhere");
    let readonly = system.sibling("rom", rom).unwrap();
    assert!(!shares(&readonly), "read-only would be lost");
    assert!(readonly.view().find(Gpa(0x1000)).unwrap().readonly);

    // After an update they share the new view, and once they differ they do not.
    system.update(|tree| tree.set_offset(one, 0x2000)).unwrap();
    assert!(shares(&device));
    system.update(|tree| tree.set_enabled(window, false)).unwrap();
    assert!(device.view().is_empty());
    let empty = system.sibling("empty", window).unwrap();
    assert!(Arc::ptr_eq(&empty.view(), &device.view()), "those that show nothing share that");
    device.update(|tree| tree.set_enabled(window, true)).unwrap();
    assert!(shares(&device) && !Arc::ptr_eq(&empty.view(), &system.sibling("none", one).unwrap().view()));
    // A second child: no longer the same.
    let extra = system.update(|tree| {
        let extra = tree.reservation("extra", 0x1000)?;
        tree.add(bus_master, 0x10_0000, extra)?;
        Ok::<_, MemoryError>(extra)
    });
    assert!(!shares(&device) && device.view().len() == 3);
    system.update(|tree| tree.remove(extra?)).unwrap();
    assert!(shares(&device));
}

#[test]
fn r18_a_child_off_the_start_or_too_long_is_no_reduction() {
    let mut tree = tree();
    let child = tree.reservation("child", 0x1000).unwrap();
    tree.add(tree.root(), 0x1000, child).unwrap();
    let alone = tree.container("alone", 0x800).unwrap();
    let alias = tree.alias("alias", child, 0, 0x1000).unwrap();
    tree.add(alone, 0, alias).unwrap();
    let system = AddressSpace::new("system", tree).unwrap();
    assert_eq!(text(&system.view()), ["0x1000-0x1fff child@0x0"]);
    // Where a root is placed does not matter to the space that shows it.
    let whole = system.sibling("child", child).unwrap();
    assert_eq!(text(&whole.view()), ["0x0-0xfff child@0x0"]);
    let cut = system.sibling("alone", alone).unwrap();
    assert_eq!(text(&cut.view()), ["0x0-0x7ff child@0x0"]);
    system.update(|tree| tree.set_readonly(child, true)).unwrap();
    assert_eq!(text(&cut.view()), ["0x0-0x7ff child@0x0"]);
}

#[test]
fn r19_a_snapshot_keeps_its_layout_and_its_regions() {
    let mut tree = tree();
    let block = RamBlock::anonymous("ram", 0x1000).unwrap();
    let ram = tree.ram("ram", block.clone()).unwrap();
    tree.add(tree.root(), 0, ram).unwrap();
    let space = AddressSpace::new("memory", tree).unwrap();
    let snapshot = space.view();
    space.update(|tree| tree.remove(ram).and_then(|()| tree.destroy(ram))).unwrap();
    let alive = Arc::downgrade(&block);
    drop(block);
    assert!(space.view().is_empty());
    assert_eq!(snapshot.hva(Gpa(0x10)), alive.upgrade().unwrap().hva().checked_add(0x10));
    drop(snapshot);
    assert!(alive.upgrade().is_none(), "and lets them go");
}

#[test]
fn ten_thousand_nested_containers_and_aliases_overflow_nothing() {
    const DEPTH: u64 = 10_000;
    let mut tree = tree();
    let leaf = tree.reservation("leaf", 0x1000).unwrap();
    let (mut nested, mut chained) = (leaf, leaf);
    for level in 0..DEPTH {
        let container = tree.container("level", 1 << 32).unwrap();
        tree.add(container, 1, nested).unwrap();
        nested = container;
        chained = tree.alias("link", chained, u64::from(level < 0x800), 1 << 32).unwrap();
    }
    tree.add(tree.root(), 0, nested).unwrap();
    tree.add(tree.root(), 1 << 40, chained).unwrap();
    let expected = [
        format!("{DEPTH:#x}-{:#x} leaf@0x0", DEPTH + 0xfff),
        format!("{:#x}-{:#x} leaf@0x800", 1_u64 << 40, (1_u64 << 40) + 0x7ff),
    ];
    assert_eq!(rendered(&tree), expected);
    let error = tree.add(leaf, 0, tree.get(nested).unwrap().container().unwrap()).unwrap_err();
    assert!(matches!(error, MemoryError::Cycle { .. } | MemoryError::AlreadyPlaced { .. }));
    let space = AddressSpace::new("memory", tree).unwrap();
    space.update(|tree| tree.set_enabled(leaf, false)).unwrap();
    assert!(space.view().is_empty());
    // So many edits so far down that a full render is the shorter way.
    let edits = |tree: &mut RegionTree| {
        tree.set_enabled(leaf, true)?;
        (1..=20).try_for_each(|size| tree.set_size(leaf, size))?;
        let innermost = tree.get(leaf)?.container().expect("it was placed");
        let last = tree.reservation("last", 1)?;
        tree.add(innermost, 0x10_0001, last)
    };
    space.update(edits).unwrap();
    let expected = [
        format!("{DEPTH:#x}-{:#x} leaf@0x0", DEPTH + 19),
        format!("{0:#x}-{0:#x} last@0x0", DEPTH + 0x10_0000),
    ];
    assert_eq!(text(&space.view()), expected);
}

#[test]
fn aliases_that_double_at_every_level_end() {
    let build = |leaf_bytes: u128| {
        let mut tree = tree();
        let mut below = tree.reservation("leaf", leaf_bytes).unwrap();
        for _ in 0..60 {
            let container = tree.container("level", 1 << 16).unwrap();
            for name in ["left", "right"] {
                let alias = tree.alias(name, below, 0, 1 << 16).unwrap();
                tree.add(container, 0, alias).unwrap();
            }
            below = container;
        }
        tree.add(tree.root(), 0, below).unwrap();
        tree
    };
    // What is hidden is not visited.
    assert_eq!(rendered(&build(1 << 16)), ["0x0-0xffff leaf@0x0"]);
    // With a gap at every level 2^60 ways would have to be tried.
    let tree = build(1);
    let error = FlatView::render(&tree).unwrap_err();
    assert!(matches!(error, MemoryError::TooManyAliases { .. }), "{error}");
    assert!(AddressSpace::new("memory", tree).is_err());
}

#[test]
fn a_window_finds_the_ranges_it_touches() {
    let mut tree = tree();
    for index in 0..1000 {
        let range = tree.reservation("range", 0x10).unwrap();
        tree.add(tree.root(), index * 0x100, range).unwrap();
    }
    let view = FlatView::render(&tree).unwrap();
    let firsts = |first, last| -> Vec<u64> {
        let window = AddrRange::inclusive(Gpa(first), Gpa(last)).unwrap();
        view.overlapping(window).map(|range| range.range.first().0).collect()
    };
    assert_eq!(firsts(0x10f, 0x2ff), [0x100, 0x200]);
    assert!(firsts(0x110, 0x1ff).is_empty());
    assert_eq!(firsts(0, u64::MAX).len(), 1000);
    assert!(firsts(u64::MAX, u64::MAX).is_empty());
    assert_eq!(view.ranges().next_back().unwrap().range.first(), Gpa(999 * 0x100));
}

/// Pages of one RAM block side by side, which join where both are shown, and regions between them that do not:
/// enough for many chunks, whose seams move.
fn patchwork() -> (AddressSpace, Vec<RegionId>) {
    const PIECES: u64 = 600;
    let mut tree = tree();
    let block = RamBlock::foreign("ram", Hva(0x7000_0000_0000), PIECES * 0x1000).unwrap();
    let ram = tree.ram("ram", block).unwrap();
    let mut pieces = Vec::new();
    for index in 0..PIECES {
        let piece = match index % 3 {
            0 => tree.reservation("gap", 0x1000).unwrap(),
            _ => tree.alias("piece", ram, index * 0x1000, 0x1000).unwrap(),
        };
        tree.add(tree.root(), index * 0x1000, piece).unwrap();
        pieces.push(piece);
    }
    // Below it all, so that a gap that is hidden shows RAM that joins its neighbours.
    tree.add_with_priority(tree.root(), 0, ram, -1).unwrap();
    (AddressSpace::new("memory", tree).unwrap(), pieces)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn r16_many_chunks_spliced_are_what_a_full_render_gives(
        transactions in vec(vec((0..600_usize, 0..6_u8), 1..8), 1..40),
    ) {
        let (space, pieces) = patchwork();
        for edits in transactions {
            space.update(|tree| {
                for (piece, what) in edits {
                    let id = pieces[piece];
                    let region = tree.get(id)?;
                    let (enabled, readonly, at) = (region.enabled(), region.readonly(), region.offset());
                    match what {
                        0..3 => tree.set_enabled(id, !enabled)?,
                        3 => tree.set_readonly(id, !readonly)?,
                        4 => tree.set_offset(id, at ^ 0x1000)?,
                        // A run of gaps at once.
                        _ => for id in pieces.iter().skip(piece).take(100).step_by(3) {
                            tree.set_enabled(*id, false)?;
                        },
                    }
                }
                Ok::<_, MemoryError>(())
            }).unwrap();
            let full = space.with_tree(|tree| FlatView::render(tree).unwrap()).unwrap();
            let view = space.view();
            prop_assert_eq!(text(&view), text(&full));
            prop_assert!(view.same_as(&full) && view.len() == full.len());
            for range in full.ranges() {
                let found = view.find(range.range.last()).unwrap();
                prop_assert!(found.same_as(range));
            }
        }
    }
}
