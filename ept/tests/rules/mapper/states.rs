//! Each state between two writes, seen by another processor: pages that stay are there all the time.

use ept::{Kind, Levels, Rights, Sizes};
use memory_model::{AddrRange, Gpa, PageSize};

use super::world::{FORMATS, G1, K4, M2, Watched, World};

const OFFSET: u64 = 8 * G1;

fn range(first: u64, bytes: u64) -> AddrRange<Gpa> {
    AddrRange::new(Gpa(first), bytes.into()).unwrap()
}

/// A huge page at 0, a large one at 1 GiB and small ones behind it, each looked at, at its edges and in between.
fn world(kind: Kind, levels: Levels) -> World {
    let mut world = World::new(kind, levels);
    let page = world.page(Rights::RWX);
    let bytes = G1 + M2 + 512 * K4;
    world.mapper().map_range(range(0, G1 + M2), OFFSET, Sizes::UpTo(PageSize::Size1G), page).unwrap();
    world
        .mapper()
        .map_range(range(G1 + M2, M2), OFFSET + G1 + M2, Sizes::Only(PageSize::Size4K), page)
        .unwrap();
    let edges =
        [0, K4, 9 * K4, M2 - K4, M2, 5 * M2, G1 - K4, G1, G1 + 9 * K4, G1 + M2, G1 + M2 + 9 * K4, bytes - K4];
    let watch = |address| Watched { address, frame: address + OFFSET, may_be_absent: false };
    world.watched = edges.map(watch).to_vec();
    world
}

#[test]
fn pages_that_stay_are_there_between_any_two_writes() {
    for (kind, levels) in FORMATS {
        let mut world = world(kind, levels);
        let (read, all) = (world.rights(Rights::READ), world.rights(Rights::RWX));
        let _ = world.mapper().split(5 * M2).unwrap();
        let _ = world.mapper().split(0).unwrap();
        let _ = world.mapper().split(G1).unwrap();
        let _ = world.mapper().join(0, PageSize::Size2M).unwrap();
        let _ = world.mapper().join(0, PageSize::Size1G).unwrap();
        let _ = world.mapper().join(G1, PageSize::Size2M).unwrap();
        let _ = world.mapper().join(G1 + M2, PageSize::Size2M).unwrap();
        // Into the huge page, the two large ones, and small ones.
        let _ = world.mapper().split(G1 + M2).unwrap();
        for (first, bytes) in [(9 * K4, K4), (5 * M2, G1), (G1 + 9 * K4, M2), (0, G1 + 2 * M2)] {
            let _ = world.mapper().protect_range(range(first, bytes), read).unwrap();
            let _ = world.mapper().protect_range(range(first, bytes), all).unwrap();
        }
        let _ = world.mapper().clear_accessed(range(0, 2 * G1), |_| ()).unwrap();
    }
}

#[test]
fn pages_that_go_and_come_are_there_or_not_and_their_neighbours_stay() {
    for (kind, levels) in FORMATS {
        let mut world = world(kind, levels);
        let page = world.page(Rights::RWX);
        for (first, bytes) in
            [(9 * K4, K4), (M2 - K4, 2 * K4), (5 * M2, G1), (G1 + 9 * K4, M2), (0, G1 + 2 * M2)]
        {
            for watched in &mut world.watched {
                watched.may_be_absent = (first..first + bytes).contains(&watched.address);
            }
            let _ = world.mapper().unmap_range(range(first, bytes)).unwrap();
            for watched in &world.watched {
                let mapped = world
                    .pages()
                    .iter()
                    .any(|page| (page.address..page.address + page.size.bytes()).contains(&watched.address));
                assert_eq!(mapped, !watched.may_be_absent, "{:#x}", watched.address);
            }
            let sizes = Sizes::UpTo(PageSize::Size2M);
            world.mapper().map_range(range(first, bytes), first + OFFSET, sizes, page).unwrap();
        }
    }
}
