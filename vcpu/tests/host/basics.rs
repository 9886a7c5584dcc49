//! Pages get frames, tables get frames, and accesses reach what they should.

use std::collections::HashSet;

use ept::mmu::{HostFault, HostFrames};
use ept::{MemoryError, PhysMemory};
use memory_model::{Hpa, Hva, PageSize, Pages, RamBlock, RamOptions};
use vcpu::soft::host::{Host, Owner};

use crate::world::{M2, World};

#[test]
fn a_page_keeps_its_frame_and_both_addresses_reach_the_same_bytes() {
    let world = World::new(0x4000, Pages::Usual);
    assert_eq!(world.host.frame_of(world.hva(0)), None);
    let found = world.touch(0x1010);
    assert_eq!(world.touch(0x1fff), found);
    assert_eq!((found.size, found.writable), (PageSize::Size4K, true));
    let hpa = world.host.frame_of(world.hva(0x1010)).unwrap();
    assert_eq!(hpa, Hpa(found.hpa.0 + 0x10));
    world.host.write(hpa, &7u64.to_le_bytes()).unwrap();
    assert_eq!(world.block.load_u64(0x1010).unwrap(), 7);
    assert_eq!(world.host.read_entry(hpa.0), Ok(7));
    assert_eq!(world.host.owner(hpa), Owner::Page(world.hva(0x1000)));
    assert_eq!(world.host.host_frame(world.hva(0x4000), false), Err(HostFault::Unmapped), "past the block");
    assert_eq!(world.settled().counts().mappings, [1, 0, 0]);
}

#[test]
fn frames_are_all_different_and_tables_are_not_guest_memory() {
    let world = World::new(0x40_0000, Pages::Usual);
    let mut seen = HashSet::new();
    for page in 0..0x400 {
        assert!(seen.insert(world.touch(page << 12).hpa.0));
        let table = world.host.allocate_table().unwrap();
        assert!(seen.insert(table));
        assert_eq!(world.host.write(Hpa(table), &[1]), Err(MemoryError::Absent { address: table }));
        assert!(world.host.read(Hpa(table), &mut [0]).is_err());
    }
    assert_eq!(world.settled().counts().tables, 0x400);
}

#[test]
fn a_freed_table_stays_as_it_is_until_nobody_can_see_it_and_then_comes_back_zeroed() {
    let host = Host::with_frames([1, 0, 0]);
    let table = host.allocate_table().unwrap();
    assert_eq!(host.compare_exchange(table + 8, 0, 5), Ok(true));
    assert_eq!(host.allocate_table(), None, "there is one frame");
    host.free_table(table);
    assert_eq!(host.read_entry(table + 8), Ok(5), "a walker beside finds what was there");
    let absent = MemoryError::Absent { address: table };
    assert_eq!(host.compare_exchange(table, 0, 5), Err(absent), "and nobody builds on it");
    assert_eq!((host.owner(Hpa(table)), host.allocate_table()), (Owner::Retired, None));
    host.quiesce();
    assert_eq!(host.read_entry(table), Err(absent));
    assert_eq!(host.allocate_table(), Some(table));
    let mut entries = [1; 512];
    host.read_table(table, &mut entries).unwrap();
    assert_eq!(entries, [0; 512]);
    host.write_entries(table + 16, &[3, 4]).unwrap();
    assert_eq!([1, 2, 3, 4].map(|index| host.read_entry(table + index * 8)), [Ok(0), Ok(3), Ok(4), Ok(0)]);
}

#[test]
fn large_pages_are_given_where_address_and_length_allow() {
    // Three and a half of them.
    let world = World::new(7 * M2 / 2, Pages::Thp);
    assert!(world.is_aligned(PageSize::Size2M));
    let found = world.touch(M2 + 0x5000);
    assert_eq!(found.size, PageSize::Size2M);
    assert_eq!(found.hpa.page_offset(PageSize::Size2M), 0x5000);
    assert_eq!(world.touch(M2).hpa.0, found.hpa.0 - 0x5000);
    assert_eq!(world.touch(3 * M2).size, PageSize::Size4K, "the last does not fit");
    assert_eq!(world.settled().counts().mappings, [1, 1, 0]);

    let small = World::new(2 * M2, Pages::Small);
    assert_eq!(small.touch(0).size, PageSize::Size4K);
    let huge = World::new(2 << 30, Pages::Huge1G);
    let inside = Hva(huge.block.hva().0 + 0x7fff_ffff).align_down(PageSize::Size1G);
    let found = huge.host.host_frame(inside, false).unwrap();
    // If the block does not begin at a multiple of 1 GiB, one lies in its middle, but its end does not.
    let fits = huge.is_aligned(PageSize::Size1G);
    assert_eq!(found.size, if fits { PageSize::Size1G } else { PageSize::Size2M });
    let middle = huge.block.hva().align_up(PageSize::Size1G).unwrap();
    let found = huge.host.host_frame(middle, false).unwrap();
    assert_eq!(found.size, PageSize::Size1G);
    assert!(found.hpa.is_aligned(PageSize::Size1G));
    huge.settled();
}

#[test]
fn a_block_gets_the_pages_that_it_asked_for() {
    let sizes =
        [(Pages::Usual, PageSize::Size4K), (Pages::Small, PageSize::Size4K), (Pages::Thp, PageSize::Size2M)];
    for (pages, size) in sizes {
        let options = RamOptions { pages, ..Default::default() };
        let block = match RamBlock::create("ram", 2 * M2, options) {
            Err(error) if pages == Pages::Thp => return println!("not checked: {error}"),
            block => block.unwrap(),
        };
        let host = Host::default();
        host.map(&block);
        assert_eq!(host.host_frame(block.hva(), true).unwrap().size, size, "{pages:?}");
    }
}

#[test]
fn a_zone_that_is_used_up_is_helped_by_the_next_smaller_one() {
    let world = World::on(Host::with_frames([513, 1, 0]), 2 * M2, Pages::Thp);
    assert_eq!(world.touch(0).size, PageSize::Size2M);
    for page in 0..512 {
        assert_eq!(world.touch(M2 + (page << 12)).size, PageSize::Size4K);
    }
    assert!(world.host.allocate_table().is_some());
    assert_eq!(world.host.allocate_table(), None);
    let more = World::on(world.host, M2, Pages::Small);
    assert_eq!(more.read_only_touch(0), Err(HostFault::Unmapped), "no frame is left");
}
