//! Rules D1, D2, D4, D5: dirty logging, by write protection and by D; the fast page fault.

use std::sync::atomic::Ordering::Relaxed;

use ept::mmu::{FaultOutcome, SpteBits, TdpOptions, Zapped};
use ept::{Access, EptCaps, Kind, Levels, Rights};
use memory_model::{Gpa, PageSize};

use super::host::{G1, HostMapping, K4, M2, World, ept_format, flushed, npt, range, world, world_with};

const D: u64 = 1 << 9;
const EPT: SpteBits = SpteBits::of(Kind::Ept);

fn options(eager_page_split: bool, dirty_bits: bool) -> TdpOptions {
    TdpOptions { eager_page_split, dirty_bits, ..TdpOptions::default() }
}

fn writable(world: &World) -> Vec<u64> {
    let leaves = world.leaves().into_iter().filter(|leaf| leaf.rights.contains(Rights::WRITE));
    leaves.map(|leaf| leaf.address).collect()
}

#[test]
fn d1_eager_split_then_write_protection_and_one_flush() {
    let mut world = world_with(PageSize::Size2M, options(true, false));
    world.touch_all();
    assert_eq!(world.set_logging(true, false), flushed(2048, 0));
    assert_eq!((world.sizes(), world.tdp.stats().remote_tlb_flush_requests), ([2048, 0, 0], 1));
    assert!(writable(&world).is_empty());
    world.access(M2 + 5 * K4, Access::WRITE).unwrap();
    assert_eq!((world.dirty(), writable(&world)), (vec![M2 + 5 * K4], vec![M2 + 5 * K4]));
}

#[test]
fn d1_without_eager_split_the_first_write_to_each_huge_page_splits_it() {
    let mut world = world(PageSize::Size2M);
    world.touch_all();
    assert_eq!(world.set_logging(true, false), flushed(4, 0));
    assert_eq!(world.sizes(), [0, 4, 0]);
    world.access(M2 + 5 * K4, Access::WRITE).unwrap();
    world.access(M2 + 5 * K4 + 8, Access::WRITE).unwrap();
    assert_eq!((world.sizes(), world.dirty()), ([512, 3, 0], vec![M2 + 5 * K4]));
}

#[test]
fn d1_initially_set_changes_nothing_until_pages_are_taken_out_of_the_log() {
    for dirty_bits in [false, true] {
        let mut world = world_with(PageSize::Size2M, options(true, dirty_bits));
        world.touch_all();
        assert_eq!(world.set_logging(true, true), Zapped::default());
        assert_eq!((world.sizes(), writable(&world).len()), ([0, 4, 0], 4));
        // `KVM_CLEAR_DIRTY_LOG` of one page.
        let page = range(M2 + K4, K4);
        match dirty_bits {
            true => assert_eq!(world.tdp.clear_dirty(page, |_| {}, &world.host), Ok(flushed(1, 0))),
            false => assert_eq!(world.tdp.write_protect(page, &world.host), Ok(flushed(1, 0))),
        }
        assert_eq!(world.sizes(), [512, 3, 0]);
        world.access(M2 + K4, Access::WRITE).unwrap();
        let mut dirty = world.dirty();
        world.tdp.clear_dirty(page, |gpa| dirty.push(gpa.raw()), &world.host).unwrap();
        assert_eq!(dirty, [M2 + K4], "{dirty_bits}");
    }
}

#[test]
fn d1_eager_split_without_tables_leaves_the_rest_to_write_faults() {
    let mut world = world_with(PageSize::Size2M, options(true, false));
    world.touch_all();
    world.host.tables.left.store(1, Relaxed);
    assert_eq!(world.set_logging(true, false), flushed(512 + 3, 0));
    assert_eq!(world.sizes(), [512, 3, 0]);
}

#[test]
fn d1_a_log_by_d_finds_what_was_written_without_faults() {
    for format in [ept_format(true, EptCaps::all()), npt(Levels::Four), npt(Levels::Five)] {
        let World { host, slots, .. } = world(PageSize::Size2M);
        let (slot, mapping) = (slots.slots[0], host.mapped[0]);
        let mut world = World::with(format, options(true, true), slot, mapping);
        world.touch_all();
        assert_eq!(world.set_logging(true, false), flushed(2048, 0));
        assert_eq!(writable(&world).len(), 2048, "nothing is write-protected");
        let taken = world.tdp.stats().pf_taken;
        for page in [M2, 2 * M2 + 5 * K4, 4 * M2] {
            world.access(page + 9, Access::WRITE).unwrap();
            world.access(page + K4, Access::READ).unwrap();
        }
        assert_eq!((world.tdp.stats().pf_taken, world.dirty().len()), (taken, 0));
        let mut dirty = Vec::new();
        let harvested = world.tdp.clear_dirty(range(M2, 2 * M2), |gpa| dirty.push(gpa.raw()), &world.host);
        assert_eq!((harvested, dirty), (Ok(flushed(2, 0)), vec![M2, 2 * M2 + 5 * K4]));
        let mut dirty = Vec::new();
        world.tdp.clear_dirty(range(0, G1), |gpa| dirty.push(gpa.raw()), &world.host).unwrap();
        assert_eq!(dirty, [4 * M2]);
        let again = world.tdp.clear_dirty(range(0, G1), |gpa| panic!("{gpa}"), &world.host);
        assert_eq!(again, Ok(Zapped::default()));
    }
}

#[test]
fn d1_a_page_mapped_under_a_log_by_d_has_d_if_it_is_written() {
    let mut world = world_with(PageSize::Size4K, options(false, true));
    world.set_logging(true, false);
    world.access(M2, Access::READ).unwrap();
    assert_eq!(world.leaf(M2).step.entry & (2 | D), 2);
    world.fault(M2 + K4, Access::WRITE);
    assert_eq!(world.leaf(M2 + K4).step.entry & (2 | D), 2 | D);
    assert_eq!(world.dirty(), [M2 + K4]);
}

#[test]
fn d1_what_goes_before_its_log_was_read_is_still_in_it() {
    let mut world = world_with(PageSize::Size4K, options(false, true));
    world.set_logging(true, false);
    for page in [M2, M2 + K4, 2 * M2] {
        world.access(page, Access::READ).unwrap();
        world.access(page, Access::WRITE).unwrap();
    }
    world.access(M2 + 2 * K4, Access::READ).unwrap();
    assert!(world.dirty().is_empty(), "hardware alone knows");
    // The host moves one page and the slot's tables go, and come again.
    world.tdp.invalidate_begin(range(M2, K4), &world.host).unwrap();
    world.tdp.invalidate_end();
    world.tdp.zap_all(&world.host).unwrap();
    world.access(2 * M2, Access::WRITE).unwrap();
    let mut dirty = world.dirty();
    world.tdp.clear_dirty(range(M2, M2), |gpa| dirty.push(gpa.raw()), &world.host).unwrap();
    assert_eq!(dirty, [2 * M2, M2, M2 + K4]);
    dirty.clear();
    world.tdp.clear_dirty(range(0, G1), |gpa| dirty.push(gpa.raw()), &world.host).unwrap();
    dirty.dedup();
    assert_eq!(dirty, [2 * M2], "and is in it once");
    // After the log has ended nothing of it is left.
    world.access(M2, Access::WRITE).unwrap();
    world.set_logging(false, false);
    world.tdp.zap_all(&world.host).unwrap();
    world.dirty();
    world.tdp.clear_dirty(range(0, G1), |gpa| panic!("{gpa}"), &world.host).unwrap();
}

#[test]
fn d2_huge_pages_are_recovered_where_the_host_has_them() {
    for eager in [false, true] {
        let mut world = world_with(PageSize::Size2M, options(eager, false));
        world.touch_all();
        world.set_logging(true, false);
        world.touch_all();
        assert_eq!(world.sizes(), [2048, 0, 0]);
        let asked = world.host.asked.load(Relaxed);
        assert_eq!(world.set_logging(false, false), flushed(2048, 4));
        assert_eq!(world.host.asked.load(Relaxed) - asked, 4, "once a table");
        world.touch_all();
        assert_eq!(world.sizes(), [0, 4, 0]);
    }
    let mut small = world(PageSize::Size4K);
    small.touch_all();
    assert_eq!(small.set_logging(false, false), Zapped::default());
    // The first huge frame is not wholly in the slot.
    let mut short = world(PageSize::Size2M);
    short.slots.slots[0].bytes -= K4;
    short.slots.slots[0].log_dirty = true;
    short.touch_all();
    assert_eq!(short.set_logging(false, false), flushed(3 * 512, 3));
    short.touch_all();
    assert_eq!(short.sizes(), [511, 3, 0]);
}

#[test]
fn d2_a_gigantic_page_is_recovered_whole() {
    let slot = ept::mmu::Memslot {
        base: Gpa(G1),
        bytes: G1,
        hva: memory_model::Hva(G1),
        readonly: false,
        log_dirty: false,
    };
    let mapping = HostMapping { hva: G1, bytes: G1, hpa: 4 * G1, size: PageSize::Size1G, writable: true };
    let mut world = World::with(npt(Levels::Five), options(true, false), slot, mapping);
    world.access(G1, Access::WRITE).unwrap();
    world.set_logging(true, false);
    assert_eq!(world.sizes(), [512 * 512, 0, 0]);
    assert_eq!(world.set_logging(false, false), flushed(512 * 512, 513));
    world.access(G1, Access::WRITE).unwrap();
    assert_eq!(world.sizes(), [0, 0, 1]);
}

#[test]
fn d4_d5_a_logged_write_is_a_fast_page_fault() {
    let mut world = world(PageSize::Size4K);
    world.access(M2, Access::WRITE).unwrap();
    world.set_logging(true, false);
    let before = world.leaf(M2).step.entry;
    assert_eq!(before & (2 | EPT.mmu_writable | EPT.host_writable), EPT.mmu_writable | EPT.host_writable);
    let asked = world.host.asked.load(Relaxed);
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(world.leaf(M2).step.entry, before | 2, "W, and D is left to hardware");
    assert_eq!((world.host.asked.load(Relaxed), world.dirty()), (asked, vec![M2]));
    let stats = world.tdp.stats();
    assert_eq!((stats.pf_taken, stats.pf_fixed, stats.pf_fast), (2, 2, 1));
}

#[test]
fn d5_no_huge_page_becomes_writable_under_a_log() {
    let mut world = world(PageSize::Size2M);
    world.touch_all();
    world.tdp.write_protect(range(M2, M2), &world.host).unwrap();
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size2M });
    assert_eq!((world.sizes(), world.tdp.stats().pf_fast, world.dirty().len()), ([0, 4, 0], 1, 0));
    world.set_logging(true, false);
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!((world.sizes(), world.tdp.stats().pf_fast), ([512, 3, 0], 1));
}

#[test]
fn d5_a_slot_about_to_go_has_no_fast_page_fault() {
    let mut world = world(PageSize::Size4K);
    world.access(M2, Access::WRITE).unwrap();
    world.set_logging(true, false);
    world.slots.invalid = true;
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::Retry);
    assert!(world.dirty().is_empty());
}

/// Rule S2, and S1 on the way: W comes and goes, host-writable stays.
#[test]
fn s2_host_writable_stays_as_long_as_the_leaf() {
    let mut world = world_with(PageSize::Size2M, options(true, false));
    world.touch_all();
    let all = |world: &World| {
        let bits = EPT.host_writable | EPT.mmu_writable;
        assert!(world.leaves().iter().all(|leaf| leaf.step.entry & bits == bits));
    };
    all(&world);
    world.set_logging(true, false);
    all(&world);
    world.access(M2, Access::WRITE).unwrap();
    all(&world);
    world.tdp.age(range(0, G1), &world.host).unwrap();
    all(&world);
    assert_eq!(world.sizes(), [2048, 0, 0]);
}
