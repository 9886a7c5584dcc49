//! Random guests and their shadows: none has a finding, and after a change those are found that the slow check finds.

use std::collections::BTreeSet;

use ept::verify::{Finding, HostPage, Violation};
use ept::{Controls, Rights};
use memory_model::PageSize;
use proptest::prelude::*;

use super::oracle;
use super::world::*;
use crate::oracle::Broken;
use crate::random::Dice;
use crate::world::*;

/// Pages of the guest in a few places far from each other, of both sizes, to all slots, its own tables among them.
fn pages(dice: &mut Dice) -> Vec<Page> {
    let mut pages: Vec<Page> = Vec::new();
    let places = [0, A, BIG, 1 << 30, 0x7fff_ffe0_0000, B, B + M2, 0xffff_ffff_ffc0_0000];
    let mut large = BTreeSet::new();
    for place in places {
        if dice.one_in(4) {
            large.insert(place);
            let gpa = LARGE + dice.below(4) * M2;
            pages.push(Page { size: PageSize::Size2M, ..page(place, gpa) });
        }
    }
    let mut taken = BTreeSet::new();
    for _ in 0..dice.below(60) {
        let place = dice.pick(&places);
        let gva = place + dice.below(512) * K4;
        let gpa = match dice.below(5) {
            0..2 => dice.below(SMALL_PAGES) * K4,
            2 => LARGE + dice.below(LARGE_BYTES / K4) * K4,
            3 => READ_ONLY + dice.below(4) * K4,
            _ => LOGGED + dice.below(4) * K4,
        };
        if !large.contains(&place) && taken.insert(gva) {
            pages.push(page(gva, gpa));
        }
    }
    for page in &mut pages {
        for right in [Rights::WRITE, Rights::USER, Rights::EXEC] {
            if dice.one_in(4) {
                page.rights -= right;
            }
        }
        page.dirty = !dice.one_in(4);
    }
    pages
}

fn random(dice: &mut Dice) -> ShadowWorld {
    let pages = pages(dice);
    let mut world = ShadowWorld::new(Controls::WP);
    pages.iter().for_each(|&page| world.guest_maps(page));
    // Not everything has been used since.
    let shadowed: Vec<_> = pages.into_iter().filter(|_| !dice.one_in(5)).collect();
    world.shadow(&shadowed, |page| page.size == PageSize::Size2M && page.gva % (2 * M2) == 0);
    world
}

/// Entries in use of the shadow and of the guest.
fn entries(world: &ShadowWorld) -> [Vec<u64>; 2] {
    let used = |frame: u64| {
        (frame..).step_by(8).take(512).filter(|&entry| world.world.read(entry) != 0).collect::<Vec<_>>()
    };
    let guest = (0..TABLE_PAGES).flat_map(|page| used(world.hpa(page * K4)));
    [world.world.frames().into_iter().flat_map(|frame| used(frame.raw())).collect(), guest.collect()]
}

fn mutate(world: &mut ShadowWorld, dice: &mut Dice) {
    let entries = entries(world);
    let of = &entries[dice.below(2) as usize];
    if of.is_empty() {
        return;
    }
    let (entry, other) = (dice.pick(of), dice.pick(of));
    let value = world.world.read(entry);
    match dice.below(8) {
        0..4 => world.world.flip(entry, 1 << dice.below(64)),
        4 => world.world.flip(entry, 1 << dice.pick(&[0, 1, 2, 5, 6, 7, 12, 13, 63])),
        5 => world.world.write(entry, world.world.read(other)),
        6 => world.world.write(entry, value ^ dice.below(1 << 8) << 12),
        _ => {
            let at = HVA + dice.pick(&[100 * K4, LARGE, READ_ONLY]) + dice.below(4) * K4;
            let page = host(dice.below(1 << 20) * K4);
            world.world.host.set(at, dice.pick(&[page, HostPage::ABSENT, HostPage::UNKNOWN]));
        }
    }
}

/// The leaves that break invariant 14, or make one of the guest's tables writable. One that is at several addresses for
/// the same reason is found at the first.
fn found(world: &ShadowWorld) -> Broken {
    let report = world.with(&world.world.slots, |memory, guest| {
        ept::verify::verify(memory, &[guest], ram(), usize::MAX).unwrap()
    });
    assert_eq!(report.total(), report.findings.len() as u64);
    let wanted = report.findings.iter().filter(|found| match found.violation {
        Violation::GuestTableWritable { .. } => true,
        violation => violation.invariant().number() == 14,
    });
    let leaf = |found: &Finding| found.path.last().unwrap().entry_address();
    wanted.map(|found| (found.violation.invariant().number(), leaf(found))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn i14_shadows_built_page_by_page_have_no_finding(seed: u64) {
        let world = random(&mut Dice::new(seed));
        let report = world.verify();
        prop_assert!(report.is_clean(), "{}", report);
        prop_assert_eq!(oracle::broken(&world), Broken::new());
    }

    #[test]
    fn i14_what_is_changed_is_found_as_the_slow_check_finds_it(seed: u64, changes in 1..4) {
        let mut dice = Dice::new(seed);
        let mut world = random(&mut dice);
        for _ in 0..changes {
            mutate(&mut world, &mut dice);
        }
        prop_assert_eq!(found(&world), oracle::broken(&world));
    }
}
