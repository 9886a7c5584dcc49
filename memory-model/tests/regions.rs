//! The rules of regions and the tree, one test each, numbered as the rules are.

#[path = "model/devices.rs"]
mod devices;

use std::sync::Arc;

use devices::{NoDevice, NoTranslation};
use memory_model::{
    AddressSpace, DirtyClients, FlatView, Gpa, Hva, MemoryError, RamBlock, RegionId, RegionTree,
};

fn tree() -> RegionTree {
    RegionTree::new("system", 1 << 64).unwrap()
}

fn block(bytes: u64) -> Arc<RamBlock> {
    RamBlock::foreign("block", Hva(0x7000_0000_0000), bytes).unwrap()
}

/// A reservation of `size` bytes: the plainest region that terminates a look-up.
fn region(tree: &mut RegionTree, name: &str, size: u128) -> RegionId {
    tree.reservation(name, size).unwrap()
}

fn view(tree: &RegionTree) -> FlatView {
    FlatView::render(tree).unwrap()
}

/// The view as `first-last name@offset`, shortest numbers.
fn text(tree: &RegionTree) -> Vec<String> {
    let range =
        |range: &memory_model::FlatRange| format!("{} {}@{:#x}", range.range, range.name, range.offset);
    view(tree).ranges().map(range).collect()
}

fn at(tree: &RegionTree, gpa: u64) -> Option<String> {
    view(tree).find(Gpa(gpa)).map(|range| range.name.to_string())
}

#[test]
fn r1_everything_but_containers_and_aliases_ends_a_look_up() {
    let mut tree = tree();
    let below = region(&mut tree, "below", 0x10_0000);
    tree.add_with_priority(tree.root(), 0, below, -1).unwrap();
    let regions = [
        (tree.ram("ram", block(0x1000)).unwrap(), true),
        (tree.rom("rom", block(0x1000)).unwrap(), true),
        (tree.rom_device("romd", block(0x1000), Arc::new(NoDevice)).unwrap(), true),
        (tree.ram_device("ramd", block(0x1000)).unwrap(), true),
        (tree.mmio("mmio", 0x1000, Arc::new(NoDevice)).unwrap(), true),
        (tree.iommu("iommu", 0x1000, Arc::new(NoTranslation)).unwrap(), true),
        (tree.reservation("reservation", 0x1000).unwrap(), true),
        (tree.container("container", 0x1000).unwrap(), false),
        (tree.alias("alias", below, 0x20_0000, 0x1000).unwrap(), false),
    ];
    for (index, (id, terminates)) in regions.into_iter().enumerate() {
        let gpa = 0x1000 * index as u64;
        tree.add(tree.root(), gpa, id).unwrap();
        let region = tree.get(id).unwrap();
        assert_eq!(region.kind().terminates(), terminates, "{}", region.name());
        let expected = if terminates { region.name().to_string() } else { "below".to_string() };
        assert_eq!(at(&tree, gpa + 0xfff), Some(expected));
    }
}

#[test]
fn r2_a_container_of_its_own_kind_shows_in_the_gaps_of_its_children() {
    let mut tree = tree();
    let device = tree.mmio("device", 0x3000, Arc::new(NoDevice)).unwrap();
    let window = region(&mut tree, "window", 0x1000);
    tree.add(device, 0x1000, window).unwrap();
    tree.add(tree.root(), 0x8000, device).unwrap();
    assert_eq!(
        text(&tree),
        ["0x8000-0x8fff device@0x0", "0x9000-0x9fff window@0x0", "0xa000-0xafff device@0x2000"]
    );
}

#[test]
fn r3_an_alias_shows_a_part_of_its_target_wherever_that_is() {
    let mut tree = tree();
    let target = region(&mut tree, "target", 0x4000);
    let elsewhere = tree.container("elsewhere", 0x10_0000).unwrap();
    tree.add(elsewhere, 0x7000, target).unwrap();
    // An alias of an alias, out of order and reaching past the end of what it shows.
    let middle = tree.alias("middle", target, 0x1000, 0x10_0000).unwrap();
    let outer = tree.alias("outer", middle, 0x1000, 0x10_0000).unwrap();
    tree.add(tree.root(), 0x10_0000, outer).unwrap();
    let early = tree.alias("early", target, 0, 0x800).unwrap();
    tree.add(tree.root(), 0x20_0000, early).unwrap();
    assert_eq!(text(&tree), ["0x100000-0x101fff target@0x2000", "0x200000-0x2007ff target@0x0"]);
    // An offset behind the target shows nothing.
    tree.set_alias_offset(outer, 0x3000).unwrap();
    assert_eq!(text(&tree), ["0x200000-0x2007ff target@0x0"]);
    assert!(matches!(tree.set_alias_offset(target, 0), Err(MemoryError::NotAlias { .. })));
    tree.set_enabled(target, false).unwrap();
    assert!(text(&tree).is_empty());
}

#[test]
fn r3_cycles_double_parents_and_children_of_an_alias_are_refused() {
    let mut tree = tree();
    let outer = tree.container("outer", 0x1000).unwrap();
    let inner = tree.container("inner", 0x1000).unwrap();
    tree.add(outer, 0, inner).unwrap();
    let alias = tree.alias("alias", outer, 0, 0x1000).unwrap();
    let error = tree.add(inner, 0, alias).unwrap_err();
    assert_eq!(error.to_string(), "region alias inside inner would make a cycle");
    assert!(matches!(tree.add(inner, 0, outer), Err(MemoryError::Cycle { .. })));
    assert!(matches!(tree.add(inner, 0, inner), Err(MemoryError::AlreadyPlaced { .. })));
    assert!(matches!(tree.add(outer, 0, outer), Err(MemoryError::Cycle { .. })));
    let error = tree.add(tree.root(), 0, inner).unwrap_err();
    assert_eq!(error.to_string(), "region inner is already inside outer");
    let lone = region(&mut tree, "lone", 1);
    let error = tree.add(alias, 0, lone).unwrap_err();
    assert_eq!(error.to_string(), "region alias is an alias, it cannot hold lone");
    assert!(matches!(tree.remove(lone), Err(MemoryError::NotPlaced { .. })));
    assert!(matches!(tree.set_offset(lone, 1), Err(MemoryError::NotPlaced { .. })));
}

#[test]
fn r4_sizes_reach_two_to_the_64_inclusive() {
    let mut tree = tree();
    let everything = region(&mut tree, "everything", 1 << 64);
    tree.add(tree.root(), 0, everything).unwrap();
    assert_eq!(text(&tree), ["0x0-0xffffffffffffffff everything@0x0"]);
    tree.set_offset(everything, 1).unwrap();
    assert_eq!(text(&tree), ["0x1-0xffffffffffffffff everything@0x0"]);
    for size in [0, (1 << 64) + 1, u128::MAX] {
        assert!(matches!(tree.reservation("odd", size), Err(MemoryError::BadSize { .. })));
        assert!(matches!(tree.set_size(everything, size), Err(MemoryError::BadSize { .. })));
    }
    // Memory ends where its block does.
    let ram = tree.ram("ram", block(0x2000)).unwrap();
    assert!(matches!(tree.set_size(ram, 0x2001), Err(MemoryError::BadSize { .. })));
    tree.set_size(ram, 0x1001).unwrap();
}

#[test]
fn r5_a_reservation_hides_what_is_below_it() {
    let mut tree = tree();
    let ram = tree.ram("ram", block(0x3000)).unwrap();
    tree.add(tree.root(), 0, ram).unwrap();
    let hole = region(&mut tree, "hole", 0x1000);
    tree.add_with_priority(tree.root(), 0x1000, hole, 1).unwrap();
    assert_eq!(at(&tree, 0x1800).as_deref(), Some("hole"));
    assert_eq!(view(&tree).hva(Gpa(0x1800)), None);
}

#[test]
fn r6_rom_is_memory_that_is_read_only() {
    let mut tree = tree();
    let rom = tree.rom("rom", block(0x1000)).unwrap();
    tree.add(tree.root(), 0, rom).unwrap();
    let view = view(&tree);
    let found = view.find(Gpa(0x10)).unwrap();
    assert!(found.readonly);
    assert_eq!(found.hva(Gpa(0x10)), Some(Hva(0x7000_0000_0010)));
}

#[test]
fn r7_direct_reads_of_a_rom_device_are_switched_by_romd() {
    let mut tree = tree();
    let flash = tree.rom_device("flash", block(0x1000), Arc::new(NoDevice)).unwrap();
    tree.add(tree.root(), 0, flash).unwrap();
    let direct = view(&tree);
    assert!(direct.find(Gpa(0)).unwrap().romd);
    tree.set_romd(flash, false).unwrap();
    let indirect = view(&tree);
    assert!(!indirect.find(Gpa(0)).unwrap().romd);
    assert!(!direct.same_as(&indirect), "a toggle is a deletion and an addition");
    let error = tree.set_romd(tree.root(), false).unwrap_err();
    assert_eq!(error.to_string(), "region system is not a ROM device");
}

#[test]
fn r8_a_ram_device_can_be_mapped() {
    let mut tree = tree();
    let bar = tree.ram_device("bar", block(0x1000)).unwrap();
    tree.add(tree.root(), 0x5000, bar).unwrap();
    assert_eq!(view(&tree).hva(Gpa(0x5008)), Some(Hva(0x7000_0000_0008)));
    assert_eq!(view(&tree).to_string(), "  0000000000005000-0000000000005fff (ramd): bar\n");
}

#[test]
fn r9_priority_is_local_to_siblings() {
    let mut tree = tree();
    let container = tree.container("container", 0x1000).unwrap();
    let high = region(&mut tree, "high", 0x1000);
    tree.add_with_priority(container, 0, high, 1000).unwrap();
    tree.add_with_priority(tree.root(), 0, container, 0).unwrap();
    let sibling = region(&mut tree, "sibling", 0x800);
    tree.add_with_priority(tree.root(), 0, sibling, 1).unwrap();
    assert_eq!(text(&tree), ["0x0-0x7ff sibling@0x0", "0x800-0xfff high@0x800"]);
    tree.set_priority(sibling, i32::MIN).unwrap();
    assert_eq!(text(&tree), ["0x0-0xfff high@0x0"]);
    tree.set_priority(sibling, i32::MAX).unwrap();
    assert_eq!(at(&tree, 0).as_deref(), Some("sibling"));
}

#[test]
fn r10_among_equals_the_last_added_wins_and_a_move_lands_on_top() {
    let mut tree = tree();
    let [first, second] = ["first", "second"].map(|name| region(&mut tree, name, 0x1000));
    tree.add(tree.root(), 0, first).unwrap();
    tree.add(tree.root(), 0, second).unwrap();
    assert_eq!(at(&tree, 0).as_deref(), Some("second"));
    tree.set_offset(first, 0x800).unwrap();
    assert_eq!(text(&tree), ["0x0-0x7ff second@0x0", "0x800-0x17ff first@0x0"]);
    // Moved to where it is: nothing happens.
    tree.set_offset(second, 0).unwrap();
    assert_eq!(at(&tree, 0x800).as_deref(), Some("first"));
    // A priority that changes and comes back is a move too.
    tree.set_priority(second, 1).unwrap();
    tree.set_priority(second, 0).unwrap();
    assert_eq!(at(&tree, 0x800).as_deref(), Some("second"));
}

#[test]
fn r11_a_child_is_clipped_to_its_parent() {
    let mut tree = tree();
    let parent = tree.container("parent", 0x1000).unwrap();
    let child = region(&mut tree, "child", 0x1000);
    let outside = region(&mut tree, "outside", 0x1000);
    tree.add(parent, 0x800, child).unwrap();
    tree.add(parent, 0x1000, outside).unwrap();
    tree.add(tree.root(), 0x4000, parent).unwrap();
    assert_eq!(text(&tree), ["0x4800-0x4fff child@0x0"]);
    tree.set_size(parent, 0x1400).unwrap();
    assert_eq!(text(&tree), ["0x4800-0x4fff child@0x0", "0x5000-0x53ff outside@0x0"]);
}

#[test]
fn r12_disabling_hides_the_whole_subtree_also_behind_an_alias() {
    let mut tree = tree();
    let parent = tree.container("parent", 0x1000).unwrap();
    let child = region(&mut tree, "child", 0x1000);
    tree.add(parent, 0, child).unwrap();
    tree.add(tree.root(), 0, parent).unwrap();
    let alias = tree.alias("alias", parent, 0, 0x1000).unwrap();
    tree.add(tree.root(), 0x8000, alias).unwrap();
    assert_eq!(text(&tree).len(), 2);
    tree.set_enabled(parent, false).unwrap();
    assert!(text(&tree).is_empty());
    tree.set_enabled(parent, true).unwrap();
    tree.set_enabled(alias, false).unwrap();
    assert_eq!(text(&tree), ["0x0-0xfff child@0x0"]);
}

#[test]
fn r13_some_attributes_are_handed_down_and_others_come_from_the_leaf() {
    let mut tree = tree();
    let leaf = tree.rom_device("leaf", block(0x1000), Arc::new(NoDevice)).unwrap();
    let container = tree.container("container", 0x1000).unwrap();
    tree.add(container, 0, leaf).unwrap();
    let alias = tree.alias("alias", container, 0, 0x1000).unwrap();
    tree.add(tree.root(), 0, alias).unwrap();
    let flags = |tree: &RegionTree| {
        let view = view(tree);
        let range = view.find(Gpa(0)).unwrap();
        (range.readonly, range.nonvolatile, range.unmergeable, range.romd, range.dirty_mask)
    };
    assert_eq!(flags(&tree), (false, false, false, true, DirtyClients::empty()));
    tree.set_readonly(alias, true).unwrap();
    tree.set_nonvolatile(container, true).unwrap();
    tree.set_unmergeable(alias, true).unwrap();
    // Asked of the leaf alone.
    tree.set_dirty_log(alias, DirtyClients::VGA).unwrap();
    tree.set_dirty_log(leaf, DirtyClients::CODE).unwrap();
    tree.set_romd(leaf, false).unwrap();
    assert_eq!(flags(&tree), (true, true, true, false, DirtyClients::CODE));
    // Or-ed: what is set above cannot be undone below.
    tree.set_readonly(leaf, false).unwrap();
    assert!(flags(&tree).0);
}

#[test]
fn r14_only_what_can_be_seen_needs_an_update() {
    let mut tree = tree();
    let parent = tree.container("parent", 0x1000).unwrap();
    let child = region(&mut tree, "child", 0x1000);
    tree.add(tree.root(), 0, parent).unwrap();
    let space = AddressSpace::new("memory", tree).unwrap();
    let same_view = |edit: &dyn Fn(&mut RegionTree) -> Result<(), MemoryError>| {
        let before = space.view();
        space.update(|tree| edit(tree)).unwrap();
        Arc::ptr_eq(&before, &space.view())
    };
    // Parent and child enabled, or not.
    assert!(same_view(&|tree| tree.set_enabled(child, false)));
    assert!(same_view(&|tree| tree.add(parent, 0, child)));
    assert!(!same_view(&|tree| tree.set_enabled(child, true)));
    assert!(!same_view(&|tree| tree.remove(child)));
    assert!(same_view(&|tree| tree.set_enabled(parent, false)));
    assert!(same_view(&|tree| tree.add(parent, 0, child)));
    assert!(!same_view(&|tree| tree.set_enabled(parent, true)));
    // A size that changes does, an equal value does not.
    assert!(!same_view(&|tree| tree.set_size(child, 0x800)));
    assert!(same_view(&|tree| tree.set_size(child, 0x800)));
    // Other setters on an enabled region alone.
    assert!(!same_view(&|tree| tree.set_readonly(child, true)));
    assert!(same_view(&|tree| tree.set_readonly(child, true)));
    assert!(!same_view(&|tree| tree.set_enabled(child, false)));
    assert!(same_view(&|tree| tree.set_readonly(child, false)));
}

#[test]
fn an_id_is_never_given_out_twice_and_regions_in_use_stay() {
    let mut tree = tree();
    let first = region(&mut tree, "first", 1);
    tree.destroy(first).unwrap();
    let second = region(&mut tree, "second", 1);
    assert_ne!(first, second);
    assert!(matches!(tree.get(first), Err(MemoryError::NoSuchRegion(id)) if id == first));
    assert!(tree.set_enabled(first, false).is_err() && tree.add(tree.root(), 0, first).is_err());
    let alias = tree.alias("alias", second, 0, 1).unwrap();
    let error = tree.destroy(second).unwrap_err();
    assert_eq!(error.to_string(), "region second cannot be destroyed: alias still refers to it");
    tree.add(tree.root(), 0, alias).unwrap();
    assert!(tree.destroy(alias).is_err());
    tree.remove(alias).unwrap();
    tree.destroy(alias).unwrap();
    tree.destroy(second).unwrap();
    let error = tree.destroy(tree.root()).unwrap_err();
    assert_eq!(error.to_string(), "region system cannot be destroyed: the tree still refers to it");
}

#[test]
fn an_inner_transaction_is_taken_back_alone_and_an_outer_one_with_all_in_it() {
    let mut tree = tree();
    let bar = region(&mut tree, "bar", 0x1000);
    let before = text(&tree);
    let outcome: Result<(), MemoryError> = tree.transaction(|tree| {
        tree.add(tree.root(), 0x1000, bar)?;
        let inner: Result<(), MemoryError> = tree.transaction(|tree| {
            let lost = tree.container("lost", 0x1000)?;
            tree.add(tree.root(), 0, lost)?;
            tree.set_offset(bar, 0x2000)?;
            tree.set_size(bar, 0)
        });
        assert!(matches!(inner, Err(MemoryError::BadSize { .. })));
        assert_eq!(text(tree), ["0x1000-0x1fff bar@0x0"]);
        tree.transaction(|tree| tree.set_offset(bar, 0x3000))?;
        assert_eq!(text(tree), ["0x3000-0x3fff bar@0x0"]);
        tree.remove(tree.root())
    });
    assert!(matches!(outcome, Err(MemoryError::NotPlaced { .. })));
    assert_eq!(text(&tree), before);
    assert_eq!(tree.iter().count(), 2);
}

#[test]
fn what_was_destroyed_and_brought_back_keeps_its_place() {
    let mut tree = tree();
    let [kept, spare] = ["kept", "spare"].map(|name| region(&mut tree, name, 0x1000));
    tree.destroy(spare).unwrap();
    let failed: Result<(), MemoryError> = tree.transaction(|tree| {
        tree.destroy(kept)?;
        region(tree, "short-lived", 0x1000);
        tree.remove(tree.root())
    });
    assert!(failed.is_err());
    let fresh = [(); 3].map(|()| region(&mut tree, "fresh", 0x1000));
    assert_eq!(&**tree.get(kept).unwrap().name(), "kept");
    assert!(fresh.iter().all(|&id| id != kept && id != spare));
    assert!(tree.get(spare).is_err());
}
