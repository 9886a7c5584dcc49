//! Which page sizes a range is mapped with.

use ept::{
    Attributes, EptCaps, Error, Format, Kind, Legacy32, Levels, Mapper, MaxPhyAddr, Pae, Paging, Rights,
    Sizes, SparseMemory, mappings,
};
use memory_model::{AddrRange, Gpa, PageSize};

use super::world::{G1, K4, M2, World};

/// Pages of 4K, 2M and 1G.
fn count(world: &World) -> [usize; 3] {
    PageSize::ALL.map(|size| world.pages().iter().filter(|page| page.size == size).count())
}

#[test]
fn the_largest_pages_that_fit_are_taken() {
    let (all, no_1g) = (EptCaps::all(), EptCaps::all() - EptCaps::PAGE_1G);
    let none = no_1g - EptCaps::PAGE_2M;
    let huge = Sizes::UpTo(PageSize::Size1G);
    for (caps, first, bytes, frame, sizes, expected) in [
        (all, 0, 2 * G1, 0, huge, [0, 0, 2]),
        (all, 0, 2 * G1, M2, huge, [0, 1024, 0]),
        (all, 0, 2 * M2, K4, huge, [1024, 0, 0]),
        (all, M2 - K4, G1 + 3 * K4, G1 + M2 - K4, huge, [3, 512, 0]),
        (all, G1 - M2 - K4, G1 + M2 + 2 * K4, 3 * G1 - M2 - K4, huge, [2, 1, 1]),
        (all, 0, G1, 0, Sizes::UpTo(PageSize::Size2M), [0, 512, 0]),
        (all, 0, M2, 0, Sizes::UpTo(PageSize::Size4K), [512, 0, 0]),
        (all, 0, M2, 0, Sizes::Only(PageSize::Size4K), [512, 0, 0]),
        (no_1g, 0, G1, 0, huge, [0, 512, 0]),
        (none, 0, M2, 0, huge, [512, 0, 0]),
    ] {
        let mut world = World::with_caps(Kind::Ept, Levels::Four, caps);
        let page = world.page(Rights::RWX);
        let range = AddrRange::new(Gpa(first), bytes.into()).unwrap();
        world.mapper().map_range(range, frame, sizes, page).unwrap();
        assert_eq!(count(&world), expected, "{range} to {frame:#x}, {sizes:?}");
        let mut at = first;
        for page in mappings(&world, &world.paging) {
            assert_eq!((page.address, page.frame), (at, frame + (at - first)));
            at += page.size.bytes();
        }
        assert_eq!(at, first + bytes);
    }
}

/// Absent entries with bits of software's are free, and what an empty table leaves is filled.
#[test]
fn what_is_absent_is_free_whatever_its_other_bits() {
    let mut world = World::new(Kind::Ept, Levels::Four);
    let page = world.page(Rights::RWX);
    let range = AddrRange::new(Gpa(0), (2 * M2).into()).unwrap();
    world.mapper().map(K4, 0, PageSize::Size4K, page).unwrap();
    let old = world.at(K4).step;
    world.write(old.entry_address(), 1 << 63 | 0xabc0);
    assert_eq!(count(&world), [0; 3]);
    world.mapper().map_range(range, 0, Sizes::UpTo(PageSize::Size2M), page).unwrap();
    assert_eq!(count(&world), [512, 1, 0]);
    assert_eq!(world.mapper().unmap_range(range).unwrap().range(), Some(range));
    assert_eq!(world.tables(), 1);
}

#[test]
fn mappings_within_a_range_are_those_that_share_an_address() {
    for (kind, levels) in super::world::FORMATS {
        let mut world = World::new(kind, levels);
        let page = world.page(Rights::RWX);
        let mut starts = vec![0, K4, M2 - K4, M2, G1, 2 * G1 + M2, 5 * G1];
        if world.paging.format.translates(u64::MAX) {
            starts.extend([u64::MAX << 47, u64::MAX - (K4 - 1)]);
        }
        for &start in &starts {
            let size = match start {
                M2 => PageSize::Size2M,
                G1 => PageSize::Size1G,
                _ => PageSize::Size4K,
            };
            world.mapper().map(start, start & (G1 - 1), size, page).unwrap();
        }
        let all = world.pages();
        assert_eq!(all.len(), starts.len());
        let mut edges: Vec<u64> = all
            .iter()
            .flat_map(|page| [page.address, page.address + (page.size.bytes() - 1)])
            .flat_map(|edge| [edge.wrapping_sub(1), edge, edge.wrapping_add(1)])
            .chain([1 << 47, 1 << 48, 1 << 56, 1 << 57, 0xff << 56, u64::MAX])
            .collect();
        edges.sort_unstable();
        for (n, &first) in edges.iter().enumerate() {
            for &last in &edges[n..] {
                let range = AddrRange::inclusive(Gpa(first), Gpa(last)).unwrap();
                let within: Vec<_> = mappings(&world, &world.paging).within(range).collect();
                let expected: Vec<_> = all
                    .iter()
                    .copied()
                    .filter(|page| page.address <= last && first <= page.address + (page.size.bytes() - 1))
                    .collect();
                assert_eq!(within, expected, "{kind:?} {levels:?} {range}");
            }
        }
    }
}

/// PAE paging has four tables at the top; 32-bit paging has entries of four bytes. Both are listed, and built by no one.
#[test]
fn the_tables_of_older_paging_are_listed_but_not_built() {
    let mut memory = SparseMemory::default();
    for frame in [0x1000, 0x2000, 0x3000, 0x4000] {
        memory.add_frame(frame);
    }
    memory.write_entry(0x1008, 0x40_0000 | 0x83).unwrap(); // 2M, at 2M
    memory.write_entry(0x2000, 0x4000 | 3).unwrap(); // a table, at 3G
    memory.write_entry(0x4010, 0x1000 | 3).unwrap(); // 4K, at 3G + 8K
    let format = Format::pae(Pae { max_phy_addr: MaxPhyAddr::MAX, no_execute: true });
    let pae = Paging { pdptes: [0x1001, 0, 0, 0x2001], ..Paging::new(format, 0) };
    // Two entries at a time: 4M at 4M, a table at 8M, and its last page.
    memory.write_entry(0x3000, (0x80_0000 | 0x83) << 32).unwrap();
    memory.write_entry(0x3008, 0x4000 | 3).unwrap();
    memory.write_entry(0x4ff8, (0x7000 | 3) << 32).unwrap();
    let legacy = Paging::new(Format::legacy32(Legacy32 { page_4m: true, pse_36: None }), 0x3000);

    let listed = |paging: &Paging, first, last| -> Vec<_> {
        let range = AddrRange::inclusive(Gpa(first), Gpa(last)).unwrap();
        let pages = mappings(&memory, paging).within(range);
        pages.map(|page| (page.address, page.frame, page.size)).collect()
    };
    let low = (M2, 2 * M2, PageSize::Size2M);
    let high = (3 * G1 + 2 * K4, K4, PageSize::Size4K);
    // What the last entry of the table at 0x4000 says, as PAE reads it, has reserved bits.
    assert_eq!(listed(&pae, 0, u64::MAX), [low, high]);
    assert_eq!(listed(&pae, 2 * M2, 3 * G1 + 2 * K4), [high]);
    assert_eq!(listed(&pae, 0, 3 * G1), [low]);
    let huge = (2 * M2, 4 * M2, PageSize::Size4M);
    let pages = [(4 * M2 + 4 * K4, K4, PageSize::Size4K), (6 * M2 - K4, 7 * K4, PageSize::Size4K)];
    assert_eq!(listed(&legacy, 0, u64::MAX), [huge, pages[0], pages[1]]);
    assert_eq!(listed(&legacy, 6 * M2 - K4, u64::MAX), [pages[1]]);
    assert_eq!(listed(&legacy, 0, 4 * M2), [huge]);

    for paging in [pae, legacy] {
        let kind = paging.format.kind();
        let mut mapper = Mapper::new(&mut memory, paging);
        let page = Attributes::ram(kind, Rights::RWX);
        assert_eq!(mapper.map(0, 0, PageSize::Size4K, page), Err(Error::NotBuilt { kind }));
        assert_eq!(mapper.unmap(M2).map(|_| ()), Err(Error::NotBuilt { kind }));
        assert_eq!(mapper.join(M2, PageSize::Size2M), Err(Error::NotBuilt { kind }));
    }
}
