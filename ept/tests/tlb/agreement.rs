//! Random changes of both dimensions. With the invalidation that each change needs, what a processor remembers is what
//! the tables say; without, it is not.

use ept::tlb::{InvEpt, LinearSpace, Mapped};
use ept::{Access, Flags, Rights};
use memory_model::Gva;
use proptest::prelude::*;
use proptest::strategy::ValueTree;

use crate::world::{DATA, PAGE, PAGES, World, page, world};

#[derive(Clone, Copy, Debug)]
enum Step {
    Access {
        page: u64,
        access: Access,
    },
    /// XORs bits into the guest's entry of that level.
    Guest {
        page: u64,
        level: u8,
        bits: u64,
    },
    /// XORs bits into the leaf of the page that starts out behind that linear page.
    Second {
        page: u64,
        bits: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let access = prop::sample::select(vec![
        Access::READ,
        Access::WRITE,
        Access::FETCH,
        Access::READ.by_user(),
        Access::WRITE.by_user(),
    ]);
    // P, W, U, the frame's lowest bit, NX; R, W, X, memory type, the frame's lowest bit.
    let guest = prop::sample::select(vec![1, 2, 4, 1 << 12, 1 << 63]);
    let second = prop::sample::select(vec![1, 2, 4, 7, 1 << 5, 1 << 12]);
    prop_oneof![
        4 => (0..PAGES, access).prop_map(|(page, access)| Step::Access { page, access }),
        1 => (0..PAGES, guest).prop_map(|(page, bits)| Step::Guest { page, level: 1, bits }),
        1 => (0..PAGES, 2..=4_u8).prop_map(|(page, level)| Step::Guest { page, level, bits: 2 }),
        1 => (0..PAGES, second).prop_map(|(page, bits)| Step::Second { page, bits }),
    ]
}

/// Where the guest's entries for each page are in the host, found before anything is broken.
fn guest_entries(world: &World) -> Vec<[u64; 5]> {
    let entry = |n, level| if level == 0 { 0 } else { world.guest_entry(page(n), level) };
    (0..PAGES).map(|n| std::array::from_fn(|level| entry(n, level as u8))).collect()
}

/// Runs the steps; how many accesses found something else than the tables say.
fn disagreements(steps: &[Step], invalidate: bool) -> usize {
    let mut world = world(0);
    let entries = guest_entries(&world);
    let leaves: Vec<u64> = (0..PAGES).map(|n| world.ept_leaf(DATA + n * PAGE)).collect();
    let mut different = 0;
    for &step in steps {
        match step {
            Step::Access { page: n, access } => {
                let gva = Gva(page(n).raw() + 0x123);
                let fresh = world.fresh(gva, access).map(summary);
                let seen = world.access(gva, access).map(summary);
                different += usize::from(seen != fresh);
            }
            Step::Guest { page: n, level, bits } => {
                world.change(entries[n as usize][level as usize], |entry| entry ^ bits);
                if invalidate {
                    world.tlb.invlpg(LinearSpace::default(), page(n).raw());
                    // An entry above the PTE concerns all pages.
                    if level > 1 {
                        world.tlb.mov_to_cr3(LinearSpace::default());
                    }
                }
            }
            Step::Second { page: n, bits } => {
                world.change(leaves[n as usize], |entry| entry ^ bits);
                if invalidate {
                    world.tlb.invept(InvEpt::Single(world.eptp));
                }
            }
        }
        assert!(!invalidate || is_subset(&world), "{step:?}");
    }
    different
}

/// Runs the steps without an invalidation. While nothing is listed as stale, no page is found elsewhere than the tables
/// have it; returns how often something was listed.
fn listed(steps: &[Step]) -> usize {
    let mut world = world(0);
    let entries = guest_entries(&world);
    let leaves: Vec<u64> = (0..PAGES).map(|n| world.ept_leaf(DATA + n * PAGE)).collect();
    let mut listed = 0;
    for &step in steps {
        match step {
            Step::Access { page: n, access } => _ = world.access(page(n), access),
            Step::Guest { page: n, level, bits } => {
                world.change(entries[n as usize][level as usize], |entry| entry ^ bits);
            }
            Step::Second { page: n, bits } => world.change(leaves[n as usize], |entry| entry ^ bits),
        }
        if !is_subset(&world) {
            listed += 1;
            continue;
        }
        for (n, access) in
            (0..PAGES).flat_map(|n| [(n, Access::READ), (n, Access::WRITE), (n, Access::FETCH)])
        {
            let mut copy = world.tlb.clone();
            let World { memory, guest, second, .. } = &world;
            let space = LinearSpace::default();
            let seen = copy.nested(memory, Some(guest), second, space, page(n), access, Flags::Keep);
            if let Ok(seen) = seen {
                let fresh = world.fresh(page(n), access).expect("nothing is stale");
                // Not by way of which guest-physical page: two of them may lie in one frame.
                assert_eq!(seen.hpa, fresh.hpa);
                assert!(fresh.rights().contains(seen.rights()));
            }
        }
    }
    listed
}

fn is_subset(world: &World) -> bool {
    let World { memory, guest, second, tlb, .. } = world;
    let spaces = [Mapped { vpid: 0, pcid: 0, guest: Some(*guest), second: Some(*second) }];
    tlb.stale(memory, &spaces).stale.is_empty()
}

/// What an access comes to, but for flags that the look did not set.
fn summary(leaf: ept::NestedLeaf) -> (u64, u64, Rights, ept::Caching) {
    (leaf.gpa.raw(), leaf.hpa.raw(), leaf.rights(), leaf.second.caching())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn i13_with_each_invalidation_what_is_remembered_is_what_is_mapped(
        steps in prop::collection::vec(step(), 1..200)
    ) {
        prop_assert_eq!(disagreements(&steps, true), 0);
    }

    #[test]
    fn i13_what_is_not_listed_as_stale_is_found_where_the_tables_have_it(
        steps in prop::collection::vec(step(), 1..100)
    ) {
        listed(&steps);
    }
}

#[test]
fn i13_without_invalidation_it_is_not() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let stale: usize = (0..20)
        .map(|_| prop::collection::vec(step(), 200).new_tree(&mut runner).unwrap().current())
        .map(|steps| disagreements(&steps, false))
        .sum();
    assert!(stale > 100, "{stale} stale translations");
    let steps = prop::collection::vec(step(), 200).new_tree(&mut runner).unwrap().current();
    assert!(listed(&steps) > 20);
}
