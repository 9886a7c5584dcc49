//! Each event: what becomes of frame, bytes and reverse map, and what is heard of it in which order.

use std::cell::Cell;

use ept::mmu::{HostFault, HostFrames};
use ept::verify::{HostMap, HostPage};
use ept::{MemoryError, PhysMemory};
use memory_model::{AddrRange, Hpa, Hva, PageSize, Pages};
use vcpu::soft::host::{Counts, Host, Inconsistent, Owner, Protection};

use crate::world::{Ear, Heard, M2, World};

/// A whole event is one start and one end around these addresses.
fn once(range: AddrRange<Hva>) -> Vec<Heard> {
    vec![Heard::Start(range), Heard::End(range)]
}

fn absent(hpa: Hpa) -> Result<u64, MemoryError> {
    Err(MemoryError::Absent { address: hpa.0 })
}

#[test]
fn swap_out_takes_frames_between_start_and_end_and_keeps_bytes() {
    let world = World::new(0x8000, Pages::Usual);
    let old = [0x1000, 0x2000].map(|offset| world.fill(offset, 7).hpa);
    let beside = world.touch(0x4000);
    let there = |hpa: Hpa| world.host.read_entry(hpa.0).is_ok();
    let mut ear = Ear::looking(|heard| match heard {
        Heard::Start(_) => assert!(there(old[0]) && there(old[1]), "told after the frames went"),
        Heard::End(_) => assert!(!there(old[0]) && !there(old[1]), "told before the frames went"),
    });
    // The bytes in the middle of a page mean the page.
    let range = AddrRange::inclusive(world.hva(0x1234), world.hva(0x3001)).unwrap();
    assert_eq!(world.host.swap_out(range, &mut ear), 2);
    assert_eq!(ear.heard, once(world.range(0x1000, 0x3000)));
    assert_eq!(world.host.frame_of(world.hva(0x1000)), None);
    for hpa in old {
        assert_eq!(world.host.read_entry(hpa.0), absent(hpa));
        assert_eq!(world.host.owner(hpa), Owner::Free);
    }
    let counts = Counts { mappings: [1, 0, 0], swapped: 2, ..Counts::default() };
    assert_eq!(world.settled().counts(), counts);
    let new = world.touch(0x1000).hpa;
    assert!(!old.contains(&new), "an old address does not come back soon");
    assert_eq!(world.host.read_entry(new.0), Ok(0x0707_0707_0707_0707));
    assert_eq!(world.touch(0x4000), beside);
    world.settled();
}

#[test]
fn migrate_gives_other_frames_of_the_same_size() {
    let world = World::new(2 * M2, Pages::Thp);
    let large = world.fill(0x3000, 5);
    let mut ear = Ear::default();
    let range = world.range(0, M2);
    assert_eq!(world.host.migrate(range, &mut ear), 1);
    assert_eq!(ear.heard, once(range));
    let moved = world.touch(0x3000);
    assert!(moved.hpa != large.hpa && moved.size == PageSize::Size2M);
    assert_eq!(world.host.read_entry(large.hpa.0), absent(large.hpa));
    assert_eq!(world.host.read_entry(moved.hpa.0), Ok(0x0505_0505_0505_0505));
    assert_eq!(world.host.owner(moved.hpa), Owner::Page(world.hva(0x3000)));
    // A part of it is split off, and heard as the whole.
    let mut ear = Ear::default();
    assert_eq!(world.host.migrate(world.range(0x3000, 0x1000), &mut ear), 1);
    assert_eq!(ear.heard, once(range));
    assert_eq!(world.touch(0x4000).hpa.0, moved.hpa.0 + 0x1000);
    assert_eq!(world.touch(0x3000).size, PageSize::Size4K);
    assert_eq!(world.settled().counts().mappings, [512, 0, 0]);
}

#[test]
fn a_mapping_without_a_new_frame_stays() {
    let world = World::on(Host::with_frames([1, 0, 0]), 0x1000, Pages::Usual);
    let found = world.touch(0);
    assert_eq!(world.host.migrate(world.range(0, 0x1000), &mut ()), 0);
    assert_eq!(world.touch(0), found);
    world.settled();
}

#[test]
fn split_keeps_the_frame_and_collapse_gives_another() {
    let world = World::new(2 * M2, Pages::Thp);
    let large = world.fill(0, 9);
    let range = world.range(0, M2);
    let mut ear = Ear::default();
    world.host.split(world.range(0x5000, 0x1000), &mut ear);
    assert_eq!(ear.heard, once(range));
    let small = world.touch(0);
    assert_eq!((small.hpa, small.size), (large.hpa, PageSize::Size4K));
    assert_eq!(world.settled().counts().mappings, [512, 0, 0]);

    world.host.swap_out(world.range(0x7000, 0x1000), &mut ());
    assert_eq!(world.host.collapse(world.range(0x1000, M2), &mut Ear::default()), 0, "no whole 2 MiB");
    let mut ear = Ear::default();
    assert_eq!(world.host.collapse(world.range(0, 2 * M2), &mut ear), 1);
    assert_eq!(ear.heard, once(range), "the second 2 MiB have no page");
    let again = world.touch(0);
    assert!(again.size == PageSize::Size2M && again.hpa != large.hpa);
    assert_eq!(world.host.read_entry(again.hpa.0), Ok(0x0909_0909_0909_0909));
    assert_eq!(world.host.read_entry(large.hpa.0), absent(large.hpa));
    assert_eq!(world.host.collapse(range, &mut ()), 0, "it is large");
    assert_eq!(world.settled().counts(), Counts { mappings: [0, 1, 0], ..Counts::default() });
}

#[test]
fn what_cannot_be_one_page_is_not_collapsed() {
    let world = World::new(M2, Pages::Small);
    let range = world.range(0, M2);
    world.touch(0);
    world.host.protect(world.range(0x1000, 0x1000), Protection::ReadOnly, &mut ());
    assert_eq!(world.host.collapse(range, &mut ()), 0, "rights differ");
    world.host.protect(range, Protection::ReadOnly, &mut ());
    world.host.poison(world.hva(0), &mut ());
    world.read_only_touch(0x1000).unwrap();
    assert_eq!(world.host.collapse(range, &mut ()), 0, "a page is broken");
    world.host.discard(world.range(0, 0x1000), &mut ()).unwrap();
    assert_eq!(world.host.collapse(range, &mut ()), 1);
    assert!(!world.read_only_touch(0x2000).unwrap().writable);
    world.settled();
}

#[test]
fn discard_frees_and_zeroes_between_start_and_end() {
    let world = World::new(2 * M2, Pages::Thp);
    let large = world.fill(0x1000, 3).hpa;
    world.fill(0x2000, 4);
    let byte = || world.block.load_u64(0x1000).unwrap() as u8;
    let mut ear =
        Ear::looking(|heard| assert_eq!(byte(), if matches!(heard, Heard::Start(_)) { 3 } else { 0 }));
    world.host.discard(world.range(0x1000, 0x1000), &mut ear).unwrap();
    assert_eq!(ear.heard, once(world.range(0, M2)));
    assert_eq!(world.host.read_entry(large.0), absent(large));
    assert_eq!(world.host.frame_of(world.hva(0x1000)), None);
    assert_eq!(world.block.load_u64(0x2000).unwrap() as u8, 4);
    assert_eq!(world.settled().counts().mappings, [511, 0, 0]);
    assert_eq!(world.touch(0x1000).size, PageSize::Size4K);
    world.host.discard(world.range(0, M2), &mut ()).unwrap();
    assert_eq!(world.touch(0x1000).size, PageSize::Size2M, "nothing was left of the small ones");
    world.settled();
}

#[test]
fn protect_refuses_accesses_by_either_address() {
    let world = World::new(2 * M2, Pages::Thp);
    let large = world.fill(0, 1);
    let hpa = large.hpa;
    let range = world.range(0, M2);
    let mut ear = Ear::default();
    world.host.protect(range, Protection::ReadOnly, &mut ear);
    assert_eq!(ear.heard, once(range));
    assert_eq!(world.host.host_frame(world.hva(0), true), Err(HostFault::Unmapped));
    let found = world.read_only_touch(0).unwrap();
    assert_eq!((found.hpa, found.size, found.writable), (hpa, PageSize::Size2M, false));
    assert_eq!(world.host.write(hpa, &[0]), Err(MemoryError::ReadOnly { address: hpa.0 }));
    assert!(world.host.read_entry(hpa.0).is_ok());
    // One page of it not at all.
    world.host.protect(world.range(0, 0x1000), Protection::None, &mut ());
    assert_eq!(world.read_only_touch(0), Err(HostFault::Unmapped));
    assert_eq!(world.host.read_entry(hpa.0), absent(hpa));
    assert_eq!(world.read_only_touch(0x1000).unwrap().size, PageSize::Size4K);
    // Rights are the page's, not the frame's.
    world.host.swap_out(range, &mut ());
    assert!(!world.read_only_touch(0x1000).unwrap().writable);
    world.host.protect(range, Protection::ReadWrite, &mut ());
    assert!(world.touch(0).writable && world.touch(0x1000).writable);
    assert_eq!(world.block.load_u64(0).unwrap() as u8, 1);
    world.settled();
}

#[test]
fn a_large_page_that_comes_meanwhile_is_told_of_too() {
    let world = World::new(M2, Pages::Thp);
    // A processor faults after the start was heard: the page lies in a larger mapping now than was said.
    let mut ear = Ear::looking(|_| drop(world.read_only_touch(0x7000)));
    let (page, whole) = (world.range(0x5000, 0x1000), world.range(0, M2));
    world.host.protect(page, Protection::ReadOnly, &mut ear);
    assert_eq!(ear.heard, [once(page), once(whole)].concat());
    assert!(!world.read_only_touch(0x5000).unwrap().writable);
    assert_eq!(world.settled().counts().mappings, [512, 0, 0]);
}

#[test]
fn merged_pages_share_a_frame_until_one_is_written() {
    let world = World::new(0x8000, Pages::Usual);
    let frames = [0x1000, 0x3000, 0x5000].map(|offset| world.fill(offset, 6).hpa);
    let pages = [0x1000, 0x3000, 0x5000].map(|offset| world.hva(offset));
    let page = |index: usize| AddrRange::page_of(pages[index], PageSize::Size4K);
    let mut ear = Ear::default();
    assert!(world.host.merge(pages[0], pages[1], &mut ear));
    let both = [Heard::Start(page(0)), Heard::Start(page(1)), Heard::End(page(1)), Heard::End(page(0))];
    assert_eq!(ear.heard, both);
    // The third comes to the first two, who keep what they have.
    let mut ear = Ear::default();
    assert!(world.host.merge(pages[2], pages[1], &mut ear));
    assert_eq!(ear.heard, once(page(2)));
    let shared = frames[0];
    assert_eq!(world.host.owner(shared), Owner::Shared(pages.to_vec()));
    assert_eq!([frames[1], frames[2]].map(|hpa| world.host.owner(hpa)), [Owner::Free, Owner::Free]);
    let found = world.read_only_touch(0x3000).unwrap();
    assert_eq!((found.hpa, found.writable), (shared, false));
    assert_eq!(world.host.read_entry(shared.0 + 8), Ok(0x0606_0606_0606_0606));
    let mut tail = [0; 3];
    world.host.read(Hpa(shared.0 + 0xffd), &mut tail).unwrap();
    assert_eq!(tail, [6; 3]);
    assert_eq!(world.host.write(shared, &[0]), Err(MemoryError::ReadOnly { address: shared.0 }));
    assert_eq!(world.settled().counts().sharing, 3);

    // A write takes one of them away.
    assert_eq!(world.host.host_frame(pages[1], true), Err(HostFault::CopyOnWrite));
    let own = || world.host.frame_of(pages[1]).unwrap() != shared;
    let mut ear = Ear::looking(|heard| assert_eq!(own(), matches!(heard, Heard::End(_))));
    world.host.break_cow(pages[1], &mut ear).unwrap();
    assert_eq!(ear.heard, once(page(1)));
    let written = world.host.host_frame(pages[1], true).unwrap();
    world.host.write(written.hpa, &[1]).unwrap();
    assert_eq!(world.host.read_entry(shared.0), Ok(0x0606_0606_0606_0606), "the others see nothing of it");
    assert_eq!(world.host.owner(shared), Owner::Shared(vec![pages[0], pages[2]]));
    let mut ear = Ear::default();
    world.host.break_cow(pages[1], &mut ear).unwrap();
    assert!(ear.heard.is_empty(), "it has its own");
    world.settled();

    // The other end too; the frame goes with its last page.
    for index in [2, 0] {
        world.host.break_cow(pages[index], &mut ()).unwrap();
    }
    assert_eq!(world.host.owner(shared), Owner::Free);
    assert_eq!(world.settled().counts().sharing, 0);
}

#[test]
fn pages_are_merged_only_with_the_same_bytes_and_where_they_may_be_read() {
    let world = World::new(2 * M2, Pages::Thp);
    world.fill(0x1000, 2);
    let large = world.fill(0x2000, 2);
    let [one, other, beyond] = [0x1000, 0x2000, M2].map(|offset| world.hva(offset));
    assert!(!world.host.merge(one, one, &mut ()));
    assert!(!world.host.merge(one, beyond, &mut ()), "no frame");
    world.touch(M2);
    assert!(!world.host.merge(one, beyond, &mut ()), "other bytes");
    world.host.protect(world.range(0x1000, 0x1000), Protection::None, &mut ());
    assert!(!world.host.merge(one, other, &mut ()));
    world.host.protect(world.range(0x1000, 0x1000), Protection::ReadWrite, &mut ());
    assert!(world.host.merge(one, other, &mut ()));
    assert_eq!(world.read_only_touch(0x3000).unwrap().hpa.0, large.hpa.0 + 0x1000);
    assert!(world.host.merge(other, one, &mut ()), "they do already");
    // What a write by HVA without asking does.
    world.block.write(0x1000, &[3]).unwrap();
    let hpa = world.host.frame_of(one).unwrap();
    assert_eq!(world.host.check(), Err(Inconsistent::Bytes { hva: one, hpa }));
}

#[test]
fn a_shared_frame_that_moves_or_breaks_takes_all_its_pages_along() {
    let world = World::new(0x8000, Pages::Usual);
    let pages = [0x1000, 0x3000].map(|offset| {
        world.fill(offset, 6);
        world.hva(offset)
    });
    assert!(world.host.merge(pages[0], pages[1], &mut ()));
    let old = world.host.frame_of(pages[0]).unwrap();
    let mut ear = Ear::default();
    assert_eq!(world.host.migrate(world.range(0x1000, 0x1000), &mut ear), 1);
    let heard = pages.map(|hva| Heard::Start(AddrRange::page_of(hva, PageSize::Size4K)));
    assert!(heard.iter().all(|start| ear.heard.contains(start)), "{:?}", ear.heard);
    let new = world.host.frame_of(pages[0]).unwrap();
    assert!(new != old && world.host.frame_of(pages[1]) == Some(new));
    assert_eq!((world.host.owner(old), world.host.owner(new)), (Owner::Free, Owner::Shared(pages.to_vec())));
    assert_eq!(world.settled().read_entry(new.0), Ok(0x0606_0606_0606_0606));

    assert!(world.host.poison(pages[1], &mut ()));
    assert_eq!(pages.map(|hva| world.host.host_frame(hva, false)), [Err(HostFault::Poisoned); 2]);
    assert_eq!((world.host.owner(new), world.host.read_entry(new.0)), (Owner::Poisoned, absent(new)));
    assert_eq!(world.settled().counts().poisoned, 2);
}

#[test]
fn a_poisoned_page_is_refused_until_it_is_discarded() {
    let world = World::new(M2, Pages::Thp);
    let broken = world.fill(0x1000, 1).hpa;
    let mut ear = Ear::default();
    assert!(world.host.poison(world.hva(0x1000), &mut ear));
    assert_eq!(ear.heard, once(world.range(0, M2)));
    assert_eq!(world.read_only_touch(0x1000), Err(HostFault::Poisoned));
    assert_eq!(world.host.read_entry(broken.0), absent(broken));
    assert!(!world.host.poison(world.hva(0x1000), &mut ()));
    world.host.discard(world.range(0x1000, 0x1000), &mut ()).unwrap();
    assert_eq!(world.host.read_entry(world.touch(0x1000).hpa.0), Ok(0));
    assert_eq!(world.host.owner(broken), Owner::Poisoned);
    world.settled();
}

#[test]
fn a_range_may_hold_several_blocks_holes_and_the_end_of_one() {
    let world = World::new(0x4000, Pages::Usual);
    let other = memory_model::RamBlock::anonymous("other", 0x3000).unwrap();
    world.host.map(&other);
    world.host.map(&other);
    world.touch(0x3000);
    world.host.host_frame(other.hva(), true).unwrap();
    assert!(world.host.owner(world.host.frame_of(other.hva()).unwrap()) == Owner::Page(other.hva()));
    let all = AddrRange::new(Hva(0), 1 << 47).unwrap();
    let mut ear = Ear::default();
    assert_eq!(world.host.swap_out(all, &mut ear), 2);
    assert_eq!(ear.heard, once(all));
    world.settled();
}

#[test]
fn a_verifier_sees_what_may_be_mapped() {
    let world = World::new(0x6000, Pages::Usual);
    let frames = [0, 0x1000, 0x2000, 0x3000].map(|offset| world.fill(offset, 1).hpa);
    assert!(world.host.merge(world.hva(0x1000), world.hva(0), &mut ()));
    world.host.protect(world.range(0x2000, 0x1000), Protection::ReadOnly, &mut ());
    world.host.protect(world.range(0x3000, 0x1000), Protection::None, &mut ());
    let mut pages = [HostPage::UNKNOWN; 7];
    world.host.pages(world.hva(0), &mut pages);
    let shared = HostPage::at(frames[1]).shared().read_only();
    let read_only = HostPage::at(frames[2]).read_only();
    let absent = HostPage::ABSENT;
    assert_eq!(pages, [shared, shared, read_only, absent, absent, absent, absent]);
}

#[test]
fn an_event_that_fails_is_heard_to_its_end() {
    let block = memory_model::RamBlock::foreign("elsewhere", Hva(0x7000_0000), 0x2000).unwrap();
    let host = Host::default();
    host.map(&block);
    let found = host.host_frame(Hva(0x7000_0000), true).unwrap();
    let range = AddrRange::new(Hva(0x7000_0000), 0x2000).unwrap();
    let ends = Cell::new(0);
    let mut ear = Ear::looking(|heard| ends.set(ends.get() + u32::from(matches!(heard, Heard::End(_)))));
    assert!(host.discard(range, &mut ear).is_err(), "it has no bytes here");
    assert_eq!(ends.get(), 1);
    assert_eq!(host.host_frame(Hva(0x7000_0000), true), Ok(found));
    assert_eq!(host.read_entry(found.hpa.0), absent(found.hpa));
}
