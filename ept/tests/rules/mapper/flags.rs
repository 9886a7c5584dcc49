//! Flags that hardware sets at the worst moment: none is lost.

use ept::{Access, Flags, Kind, Levels, Mapping, Rights, Sizes, translate};
use memory_model::{AddrRange, Gpa, PageSize};

use super::world::{FORMATS, K4, M2, Race, World};

fn first_2m() -> AddrRange<Gpa> {
    AddrRange::new(Gpa(0), M2.into()).unwrap()
}

/// A world with one page of that size at 0, and its leaf.
fn world(kind: Kind, levels: Levels, size: PageSize) -> (World, Mapping) {
    let mut world = World::new(kind, levels);
    let page = world.page(Rights::RWX);
    world.mapper().map(0, 0, size, page).unwrap();
    let leaf = world.at(0);
    (world, leaf)
}

impl World {
    /// Hardware writes through the leaf, or the table pointer, just before it is exchanged.
    fn race(&self, at: u64, there: u64) {
        let (accessed, dirty) = self.flags();
        self.race.replace(Some(Race { at, there, bits: accessed | dirty }));
    }

    fn is_dirty(&self, page: &Mapping) -> bool {
        page.step.entry & self.flags().1 != 0
    }
}

#[test]
fn a_page_that_is_written_at_the_last_moment_is_told_as_dirty() {
    for (kind, levels) in FORMATS {
        for unmap in [true, false] {
            let (mut world, leaf) = world(kind, levels, PageSize::Size4K);
            let at = leaf.step.entry_address();
            world.race(at, at);
            let rights = world.rights(Rights::READ);
            let (page, flush) = match unmap {
                true => world.mapper().unmap(0).unwrap(),
                false => world.mapper().protect(0, rights).unwrap(),
            };
            assert!(world.is_dirty(&page) && flush.is_needed() && world.race.take().is_none());
            assert!(unmap || world.is_dirty(&world.at(0)) && world.at(0).rights == rights);
            assert_eq!(world.tables(), if unmap { 1 } else { usize::from(levels as u8) });
        }
    }
}

/// Rule A3: the flag that is set while others are cleared is told, or stays.
#[test]
fn a3_a_flag_set_while_another_is_cleared_stays() {
    for (kind, levels) in FORMATS {
        let (mut world, leaf) = world(kind, levels, PageSize::Size2M);
        let (accessed, dirty) = world.flags();
        let at = leaf.step.entry_address();
        world.write(at, leaf.step.entry | accessed);
        world.race(at, at);
        let mut told = Vec::new();
        let flush = world.mapper().clear_accessed(first_2m(), |page| told.push(page)).unwrap();
        assert_eq!(flush.range(), Some(first_2m()));
        assert_eq!(
            told.iter().map(|page| page.step.entry).collect::<Vec<_>>(),
            [leaf.step.entry | accessed | dirty]
        );
        assert_eq!(world.at(0).step.entry, leaf.step.entry | dirty);
        told.clear();
        let _ = world
            .mapper()
            .clear_dirty(AddrRange::new(Gpa(5 * K4), 1).unwrap(), |page| told.push(page))
            .unwrap();
        assert_eq!((told.len(), told[0].address, world.at(0).step.entry), (1, 0, leaf.step.entry));
        assert_eq!(world.mapper().clear_dirty(first_2m(), |_| panic!()), Ok(ept::Flush::NOTHING));
    }
}

/// Pieces of a page that is dirty are dirty: a processor that holds the large translation sets D no more.
#[test]
fn a_split_page_hands_its_flags_down() {
    for (kind, levels) in FORMATS {
        for late in [true, false] {
            let (mut world, leaf) = world(kind, levels, PageSize::Size2M);
            let at = leaf.step.entry_address();
            match late {
                true => world.race(at, at),
                false => {
                    translate(&world, &world.paging, 0, Access::WRITE.by_user(), Flags::Set).unwrap();
                }
            }
            assert_eq!(world.mapper().split(7 * K4).unwrap().range(), Some(first_2m()));
            let pages = world.pages();
            assert_eq!(pages.len(), 512);
            assert!(pages.iter().all(|page| world.is_dirty(page)));
            assert_ne!(world.pointer(0, 2).1 & world.flags().0, 0, "A of the table pointer");
        }
    }
}

/// Flags that a processor sets in the small entries after they were read, and in the pointer to their table.
#[test]
fn a_joined_page_gathers_flags_that_come_late() {
    for (kind, levels) in FORMATS {
        for in_pointer in [true, false] {
            let mut world = World::new(kind, levels);
            let page = world.page(Rights::RWX);
            world.mapper().map_range(first_2m(), 0, Sizes::Only(PageSize::Size4K), page).unwrap();
            let (pointer, _) = world.pointer(0, 2);
            let small = world.at(77 * K4).step.entry_address();
            world.race(pointer, if in_pointer { pointer } else { small });
            assert_eq!(world.mapper().join(0, PageSize::Size2M).unwrap().range(), Some(first_2m()));
            let pages = world.pages();
            assert_eq!((pages.len(), pages[0].size), (1, PageSize::Size2M));
            assert!(world.race.take().is_none());
            assert_eq!(world.is_dirty(&pages[0]), !in_pointer);
        }
    }
}

/// The large page has the flags that any of the small ones has.
#[test]
fn a_joined_page_is_used_if_one_of_its_pieces_was() {
    for (kind, levels) in FORMATS {
        for access in [Access::READ, Access::WRITE] {
            let mut world = World::new(kind, levels);
            let page = world.page(Rights::RWX);
            world.mapper().map_range(first_2m(), 0, Sizes::Only(PageSize::Size4K), page).unwrap();
            translate(&world, &world.paging, 511 * K4, access.by_user(), Flags::Set).unwrap();
            let flags = world.at(511 * K4).step.entry ^ world.at(0).step.entry ^ (511 * K4);
            let _ = world.mapper().join(0, PageSize::Size2M).unwrap();
            let (accessed, dirty) = world.flags();
            assert_eq!(world.at(0).step.entry & (accessed | dirty), flags);
            assert_eq!(world.is_dirty(&world.at(0)), access == Access::WRITE);
        }
    }
}

/// All that a leaf says besides its frame goes through a split and a join unharmed.
#[test]
fn split_and_join_keep_every_bit() {
    for (kind, levels) in FORMATS {
        for size in [PageSize::Size2M, PageSize::Size1G] {
            let (mut world, leaf) = world(kind, levels, size);
            // Software's bits; in EPT also suppress-#VE, elsewhere a protection key, G, PAT and NX.
            let more = if world.is_ept() {
                1 << 63 | 1 << 55
            } else {
                1 << 63 | 5 << 59 | 1 << 12 | 1 << 8 | 1 << 9
            };
            let entry = leaf.step.entry | more;
            world.write(leaf.step.entry_address(), entry);
            let _ = world.mapper().split(0).unwrap();
            let bits = world.pages()[3].step.entry;
            assert!(size == PageSize::Size1G || world.is_ept() || bits & 1 << 7 != 0, "PAT moves to bit 7");
            let _ = world.mapper().join(0, size).unwrap();
            assert_eq!(world.at(0).step.entry, entry, "{kind:?} {size}");
        }
    }
}

#[test]
fn protect_keeps_the_flags_that_hardware_has_set() {
    let (mut world, leaf) = world(Kind::Ept, Levels::Four, PageSize::Size4K);
    world.write(leaf.step.entry_address(), leaf.step.entry | 1 << 11 | 3 << 8);
    let (before, flush) = world.mapper().protect(0, Rights::READ).unwrap();
    assert_eq!((before.rights, flush.is_needed()), (Rights::RWX, true));
    let after = world.at(0);
    assert_eq!((after.rights, after.step.entry), (Rights::READ, before.step.entry & !0b110));
    // Rule IV2: what is granted leaves nothing stale.
    let (_, flush) = world.mapper().protect(0, Rights::RWX).unwrap();
    assert!(!flush.is_needed());
}
