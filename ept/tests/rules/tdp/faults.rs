//! The fault path of the TDP MMU, its page sizes, and what a zap leaves.

use std::sync::atomic::Ordering::Relaxed;

use ept::mmu::{FaultOutcome, HostFault, Memslot, PageFault, SpteBits, Stats, Zapped};
use ept::{Access, EptCaps, Error, Kind, Levels, Rights};
use memory_model::{AddrRange, Gpa, Hva, PageSize};

use super::host::{G1, HostMapping, K4, M2, WIDTH, World, ept_format, flushed, npt, range, world};

#[test]
fn a_first_touch_maps_and_a_second_fault_is_spurious() {
    let world = world(PageSize::Size4K);
    assert_eq!(world.fault(M2 + 0x123, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(world.fault(M2 + 0x456, Access::READ), FaultOutcome::Spurious);
    assert_eq!(world.leaf(M2).frame, 4 * G1);
    let Stats { pf_taken, pf_fixed, pf_spurious, pf_emulate, .. } = world.tdp.stats();
    assert_eq!((pf_taken, pf_fixed, pf_spurious, pf_emulate), (2, 1, 1, 0));
    assert_eq!(world.sizes(), [1, 0, 0]);
}

#[test]
fn outside_slots_is_mmio_and_maps_nothing() {
    let world = world(PageSize::Size4K);
    for gpa in [0, M2 - 1, 5 * M2, 1 << 48, u64::MAX] {
        assert_eq!(world.fault(gpa, Access::READ), FaultOutcome::Mmio { gpa: Gpa(gpa) });
    }
    assert_eq!((world.sizes(), world.tdp.stats().pf_emulate), ([0; 3], 5));
}

#[test]
fn k4_an_access_to_a_slot_about_to_go_is_made_again_and_is_no_mmio() {
    let mut world = world(PageSize::Size4K);
    world.slots.invalid = true;
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::Retry);
    assert_eq!(world.fault(0, Access::WRITE), FaultOutcome::Mmio { gpa: Gpa(0) });
    assert_eq!((world.sizes(), world.tdp.stats().pf_emulate), ([0; 3], 1));
    world.slots.invalid = false;
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
}

#[test]
fn a_slot_beyond_the_tables_is_mmio() {
    let mut world = world(PageSize::Size4K);
    world.slots.slots[0].base = Gpa(1 << 48);
    let mmio = FaultOutcome::Mmio { gpa: Gpa(1 << 48) };
    assert_eq!(world.fault(1 << 48, Access::READ), mmio);
    let fault = PageFault::of_tdp(Gpa(1 << 48), Access::READ);
    let resolved = fault.resolve(world.tdp.invalidations().seq(), &world.slots, &world.host);
    assert_eq!(world.tdp.map(&fault, resolved, &world.slots, &world.host), Ok(mmio));
    assert!(world.leaves().is_empty());
}

#[test]
fn a_read_only_slot_is_read_and_its_writes_are_mmio() {
    let mut world = world(PageSize::Size2M);
    world.slots.slots[0].readonly = true;
    let write = world.fault(M2, Access::WRITE);
    assert_eq!(write, FaultOutcome::MmioReadonlyWrite { gpa: Gpa(M2) });
    assert_eq!(world.fault(M2, Access::FETCH), FaultOutcome::Fixed { size: PageSize::Size2M });
    assert_eq!(world.leaf(M2).rights, Rights::READ | Rights::EXEC);
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::MmioReadonlyWrite { gpa: Gpa(M2) });
    assert_eq!(world.sizes(), [0, 1, 0]);
}

#[test]
fn z5_what_the_host_cannot_give_is_a_host_fault() {
    let mut world = world(PageSize::Size4K);
    world.host.mapped[0].writable = false;
    let refused = FaultOutcome::HostFault { gpa: Gpa(M2 + 8), hva: Hva(G1 + 8), fault: HostFault::Unmapped };
    assert_eq!(world.fault(M2 + 8, Access::WRITE), refused);
    world.host.lenient = true;
    assert_eq!(world.fault(M2 + 8, Access::WRITE), refused, "or the guest would fault for ever");
    world.host.lenient = false;
    assert_eq!(world.sizes(), [0; 3]);
    assert_eq!(world.fault(M2 + 8, Access::READ), FaultOutcome::Fixed { size: PageSize::Size4K });
    let bits = SpteBits::of(Kind::Ept);
    assert_eq!(world.leaf(M2).step.entry & (bits.host_writable | bits.mmu_writable | 2), 0, "rule S1: 000");
    world.host.mapped.clear();
    assert_eq!(world.fault(M2 + 8, Access::WRITE), refused);
}

/// The leaves that KVM made on real processors for the same pages.
#[test]
fn s1_mt3_leaves_are_those_of_kvm() {
    let slot =
        |hva| Memslot { base: Gpa(0), bytes: 4 * M2, hva: Hva(hva), readonly: false, log_dirty: false };
    let mapping = |hpa, size| HostMapping { hva: G1, bytes: 4 * M2, hpa, size, writable: true };
    let npt = npt(Levels::Five);
    let ept = ept_format(true, EptCaps::all());
    for (format, hpa, size, spte) in [
        (ept, 0x0292_9000, PageSize::Size4K, 0x0600_0000_0292_9b77),
        (ept, 0x0680_0000, PageSize::Size2M, 0x0600_0000_0680_0bf7),
        (npt, 0x0343_b000, PageSize::Size4K, 0x0343_be67),
        (npt, 0x0460_0000, PageSize::Size2M, 0x0460_0ee7),
    ] {
        let world = World::new(format, slot(G1), mapping(hpa, size));
        assert_eq!(world.fault(0, Access::WRITE), FaultOutcome::Fixed { size });
        assert_eq!(world.leaf(0).step.entry, spte, "{:#x}", world.leaf(0).step.entry);
        let tables = world.tdp.pages(&world.host).unwrap().len();
        assert_eq!(tables, usize::from(format.levels() + 1 - size.level()));
    }
}

/// Hosts without accessed and dirty flags: bit 52 says so, and bits 8 and 9 stay clear.
#[test]
fn leaves_say_when_hardware_sets_no_flags() {
    let slot = Memslot { base: Gpa(0), bytes: M2, hva: Hva(G1), readonly: false, log_dirty: false };
    let mapping = HostMapping { hva: G1, bytes: M2, hpa: G1, size: PageSize::Size4K, writable: true };
    let world = World::new(ept_format(false, EptCaps::all()), slot, mapping);
    world.fault(0, Access::WRITE);
    assert_eq!(world.leaf(0).step.entry, 0x0610_0000_4000_0877);
    assert!(world.tdp.pages(&world.host).unwrap().iter().all(|page| page.ad_disabled));
}

/// Rules L1 to L3, with the exact numbers of a slot of 8 MiB.
#[test]
fn l1_l2_l3_page_sizes() {
    let slot = Memslot { base: Gpa(G1), bytes: 4 * M2, hva: Hva(2 * G1), readonly: false, log_dirty: false };
    let huge =
        HostMapping { hva: 2 * G1, bytes: 8 * M2, hpa: 4 * G1, size: PageSize::Size2M, writable: true };
    let cases = [
        ("huge pages, all aligned", slot, huge, [0, 4, 0]),
        ("L3: no huge pages", slot, HostMapping { size: PageSize::Size4K, ..huge }, [2048, 0, 0]),
        ("L2: hva off by 4K against gpa", Memslot { hva: Hva(2 * G1 + K4), ..slot }, huge, [2048, 0, 0]),
        (
            "L2: the same, though the frames happen to lie well",
            Memslot { hva: Hva(2 * G1 + K4), ..slot },
            HostMapping { hpa: 4 * G1 - K4, ..huge },
            [2048, 0, 0],
        ),
        (
            "L2: gpa and hva both 4K into a huge frame",
            Memslot { base: Gpa(G1 + K4), hva: Hva(2 * G1 + K4), ..slot },
            huge,
            [512, 3, 0],
        ),
        ("L2: 4K short at the tail", Memslot { bytes: 4 * M2 - K4, ..slot }, huge, [511, 3, 0]),
        ("L1: log dirty", Memslot { log_dirty: true, ..slot }, huge, [2048, 0, 0]),
        ("frames not congruent", slot, HostMapping { hpa: 4 * G1 + K4, ..huge }, [2048, 0, 0]),
    ];
    for (name, slot, mapping, sizes) in cases {
        let world = World::new(ept_format(true, EptCaps::all()), slot, mapping);
        world.touch_all();
        assert_eq!(world.sizes(), sizes, "{name}");
        assert_eq!(world.tdp.stats().pf_taken, sizes.iter().sum::<u64>(), "{name}");
    }
}

#[test]
fn l3_a_gigantic_page_needs_the_format_and_the_whole_slot() {
    let slot = Memslot { base: Gpa(G1), bytes: 2 * G1, hva: Hva(G1), readonly: false, log_dirty: false };
    let gigantic =
        HostMapping { hva: G1, bytes: 2 * G1, hpa: 4 * G1, size: PageSize::Size1G, writable: true };
    for (caps, bytes, size) in [
        (EptCaps::all(), 2 * G1, PageSize::Size1G),
        (EptCaps::all(), G1 - K4, PageSize::Size2M),
        (EptCaps::all() - EptCaps::PAGE_1G, 2 * G1, PageSize::Size2M),
        (EptCaps::all() - EptCaps::PAGE_1G - EptCaps::PAGE_2M, 2 * G1, PageSize::Size4K),
    ] {
        let world = World::new(ept_format(true, caps), Memslot { bytes, ..slot }, gigantic);
        assert_eq!(world.fault(G1 + 5 * M2, Access::READ), FaultOutcome::Fixed { size });
        assert_eq!(world.sizes().iter().sum::<u64>(), 1);
    }
}

#[test]
fn dirty_logging_splits_a_huge_page_and_marks_what_is_written() {
    let mut world = world(PageSize::Size2M);
    world.touch_all();
    assert_eq!(world.sizes(), [0, 4, 0]);
    world.slots.slots[0].log_dirty = true;
    let range = range(M2, 4 * M2);
    assert_eq!(world.tdp.write_protect(range, &world.host), Ok(flushed(4, 0)));
    let bits = SpteBits::of(Kind::Ept);
    let entry = world.leaf(M2).step.entry;
    assert_eq!(entry & (2 | bits.mmu_writable), bits.mmu_writable, "rule D4: 110");
    assert_eq!(world.tdp.write_protect(range, &world.host), Ok(Zapped::default()));

    let written = M2 + 7 * K4;
    assert_eq!(world.fault(written, Access::READ), FaultOutcome::Spurious, "reads go on as they were");
    assert_eq!(world.fault(written + 5, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(world.dirty(), [written + 5]);
    assert_eq!(world.sizes(), [512, 3, 0]);
    let writable = world.leaves().into_iter().filter(|leaf| leaf.rights.contains(Rights::WRITE));
    assert_eq!(writable.map(|leaf| leaf.address).collect::<Vec<_>>(), [written]);
}

#[test]
fn a_gigantic_page_is_split_twice() {
    let slot = Memslot { base: Gpa(G1), bytes: G1, hva: Hva(G1), readonly: false, log_dirty: false };
    let gigantic = HostMapping { hva: G1, bytes: G1, hpa: 4 * G1, size: PageSize::Size1G, writable: true };
    for format in [ept_format(true, EptCaps::all()), npt(Levels::Four)] {
        let mut world = World::new(format, slot, gigantic);
        world.fault(G1, Access::READ);
        assert_eq!(world.sizes(), [0, 0, 1]);
        world.slots.slots[0].log_dirty = true;
        let range = range(G1, 1);
        world.tdp.write_protect(range, &world.host).unwrap();
        assert_eq!(world.fault(G1 + 3 * M2, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
        assert_eq!(world.sizes(), [512, 511, 0]);
    }
}

#[test]
fn a_read_under_dirty_logging_is_mapped_without_w() {
    let mut world = world(PageSize::Size4K);
    world.slots.slots[0].log_dirty = true;
    world.fault(M2, Access::READ);
    assert_eq!(world.leaf(M2).rights, Rights::READ | Rights::EXEC);
    assert!(world.dirty().is_empty());
    assert_eq!(world.fault(M2, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(world.dirty(), [M2]);
    assert_eq!(world.sizes(), [1, 0, 0]);
}

#[test]
fn a_huge_page_takes_the_place_of_small_ones() {
    let mut world = world(PageSize::Size4K);
    world.fault(M2, Access::WRITE);
    world.fault(M2 + 9 * K4, Access::WRITE);
    world.host.mapped[0].size = PageSize::Size2M;
    assert_eq!(world.fault(M2 + K4, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size2M });
    assert_eq!(world.sizes(), [0, 1, 0]);
}

#[test]
fn n1_after_a_zap_the_next_fault_sees_the_new_frame() {
    let mut world = world(PageSize::Size4K);
    world.touch_all();
    world.host.mapped[0].hpa = 8 * G1;
    assert_eq!(world.zap(M2, 4 * M2), flushed(2048, 6));
    assert_eq!(world.sizes(), [0; 3]);
    world.touch_all();
    assert_eq!(world.sizes(), [2048, 0, 0]);
    assert_eq!(world.leaf(2 * M2).frame, 8 * G1 + M2);
}

#[test]
fn z3_a_zap_takes_its_range_and_no_more() {
    let mut world = world(PageSize::Size4K);
    world.touch_all();
    assert_eq!(world.zap(M2 + 3 * K4 + 0x800, K4), flushed(2, 0));
    assert_eq!(world.sizes(), [2046, 0, 0]);
    assert_eq!(world.zap(0, M2), Zapped::default());
    assert_eq!(world.zap(2 * M2, M2), flushed(512, 1));
    assert_eq!(world.sizes(), [1534, 0, 0]);
    let all = AddrRange::inclusive(Gpa(0), Gpa(u64::MAX)).unwrap();
    let zapped = world.tdp.zap(all, &world.host).unwrap();
    assert_eq!(zapped, flushed(1534, 5));
    assert_eq!((world.sizes(), world.host.tables.live().len()), ([0; 3], 1));
}

#[test]
fn a_zap_inside_a_huge_page_takes_all_of_it() {
    let mut world = world(PageSize::Size2M);
    world.touch_all();
    assert_eq!(world.zap(M2 + 5 * K4, 1), flushed(1, 0));
    assert_eq!(world.sizes(), [0, 3, 0]);
}

#[test]
fn running_out_of_tables_is_an_error_and_leaves_no_leaf() {
    let mut world = world(PageSize::Size4K);
    for left in 0..3 {
        world.host.tables.left.store(left, Relaxed);
        let slots = &world.slots;
        let refused = world.tdp.fault(Gpa(M2), Access::WRITE, slots, &world.host);
        assert_eq!(refused, Err(Error::OutOfTables));
        assert!(world.leaves().is_empty());
        world.zap(0, G1);
    }
}

#[test]
fn a_table_beyond_maxphyaddr_is_refused_and_given_back() {
    let world = world(PageSize::Size4K);
    let first = 1 << WIDTH.bits();
    world.host.tables.wrong.store(first, Relaxed);
    let refused = world.tdp.fault(Gpa(M2), Access::WRITE, &world.slots, &world.host);
    assert_eq!(refused, Err(Error::OutputRange { address: first, bits: 46 }));
    assert_eq!(world.sizes(), [0; 3]);
}

#[test]
fn a_frame_beyond_maxphyaddr_is_refused() {
    let mut world = world(PageSize::Size4K);
    world.host.mapped[0].hpa = 1 << WIDTH.bits();
    let refused = world.tdp.fault(Gpa(M2), Access::WRITE, &world.slots, &world.host);
    assert_eq!(refused, Err(Error::OutputRange { address: 1 << WIDTH.bits(), bits: 46 }));
}

#[test]
fn free_gives_every_table_back() {
    let world = world(PageSize::Size4K);
    world.touch_all();
    world.tdp.free(&world.host).unwrap();
    assert!(world.host.tables.live().is_empty());
}

/// A processor sets A in a huge leaf at the very moment it is to be split, or zapped.
#[test]
fn a_flag_set_by_hardware_meanwhile_is_not_lost_nor_fatal() {
    let mut world = world(PageSize::Size2M);
    world.fault(M2, Access::WRITE);
    world.slots.slots[0].log_dirty = true;
    let range = range(M2, M2);
    world.tdp.write_protect(range, &world.host).unwrap();
    let leaf = world.leaf(M2).step;
    let address = leaf.entry_address();
    world.host.tables.write(address, leaf.entry & !(1 << 8));
    *world.host.tables.mark.lock().unwrap() = Some((address, 1 << 8));
    assert_eq!(world.fault(M2 + K4, Access::WRITE), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(world.sizes(), [512, 0, 0]);
    assert!(world.leaves().iter().all(|leaf| leaf.step.entry >> 8 & 1 == 1));

    let leaf = world.leaf(M2).step;
    let address = leaf.entry_address();
    world.host.tables.write(address, leaf.entry & !(1 << 9));
    *world.host.tables.mark.lock().unwrap() = Some((address, 1 << 9));
    assert_eq!(world.zap(M2, K4), flushed(1, 0));
    assert_eq!(world.sizes(), [511, 0, 0]);
}
