//! Rules L1 to L5: how large a page becomes. The rows are those measured on KVM, with a slot of 8 MiB.

use ept::mmu::{FaultOutcome, HostFault, TdpOptions};
use ept::{Access, Rights};
use memory_model::{Gpa, Hva, PageSize};

use super::host::{G1, K4, M2, World, flushed, range, world, world_with};

/// What happens to a machine whose pages were all touched once, huge and aligned as they are; then they are touched
/// again.
fn again(change: impl Fn(&mut World)) -> [u64; 3] {
    let mut world = world(PageSize::Size2M);
    world.touch_all();
    assert_eq!(world.sizes(), [0, 4, 0]);
    change(&mut world);
    world.touch_all();
    world.sizes()
}

#[test]
fn l2_n1_new_frames_after_discarding_are_huge_again() {
    let sizes = again(|world| {
        let gone = world.tdp.invalidate_begin(range(M2, 4 * M2), &world.host).unwrap();
        assert_eq!((gone.leaves, gone.tables, gone.flush), (4, 0, true));
        world.host.mapped[0].hpa = 8 * G1;
        world.tdp.invalidate_end();
    });
    assert_eq!(sizes, [0, 4, 0]);
}

#[test]
fn l1_a_log_that_starts_leaves_small_pages() {
    assert_eq!(again(|world| _ = world.set_logging(true, false)), [2048, 0, 0]);
}

#[test]
fn l1_z3_a_slot_made_again_without_a_log_is_huge() {
    let sizes = again(|world| {
        assert_eq!(world.zap(M2, 4 * M2).leaves, 4);
        assert_eq!(world.sizes(), [0; 3]);
    });
    assert_eq!(sizes, [0, 4, 0]);
}

#[test]
fn l1_a_read_only_backing_or_slot_maps_nothing_for_a_write() {
    let mut world = world(PageSize::Size2M);
    world.host.mapped[0].writable = false;
    let fault = HostFault::Unmapped;
    let refused = FaultOutcome::HostFault { gpa: Gpa(M2), hva: Hva(G1), fault };
    assert_eq!(world.access(M2, Access::WRITE), Err(refused));
    world.host.mapped[0].writable = true;
    world.slots.slots[0].readonly = true;
    assert_eq!(world.access(M2, Access::WRITE), Err(FaultOutcome::MmioReadonlyWrite { gpa: Gpa(M2) }));
    assert_eq!(world.sizes(), [0; 3]);
}

const NX: TdpOptions = TdpOptions {
    mmio_caching: false,
    nx_huge_pages: true,
    eager_page_split: false,
    dirty_bits: false,
    max_tables: None,
};

#[test]
fn l5_a_fetch_maps_4k_and_huge_pages_are_not_executable() {
    let world = world_with(PageSize::Size2M, NX);
    assert_eq!(world.fault(M2 + K4, Access::READ), FaultOutcome::Fixed { size: PageSize::Size2M });
    assert_eq!(world.leaf(M2).rights, Rights::READ | Rights::WRITE);
    assert_eq!(world.fault(2 * M2, Access::FETCH), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(world.leaf(2 * M2).rights, Rights::RWX);
    assert_eq!((world.sizes(), world.tdp.stats().nx_lpage_splits), ([1, 1, 0], 1));
}

#[test]
fn l5_a_fetch_splits_a_huge_page_and_no_later_fault_joins_it() {
    let mut world = world_with(PageSize::Size2M, NX);
    world.access(M2, Access::WRITE).unwrap();
    assert_eq!(world.fault(M2 + K4, Access::FETCH), FaultOutcome::Fixed { size: PageSize::Size4K });
    assert_eq!(world.sizes(), [512, 0, 0]);
    assert_eq!(world.leaf(M2 + K4).rights, Rights::RWX, "what is small may be executed");
    assert_eq!(world.access(M2 + K4, Access::FETCH).unwrap().address, 4 * G1 + K4);
    // The same for a table that was made by a fetch, where a read could have a huge page.
    world.access(2 * M2 + 7 * K4, Access::FETCH).unwrap();
    world.access(2 * M2 + 8 * K4, Access::READ).unwrap();
    assert_eq!((world.sizes(), world.tdp.stats().nx_lpage_splits), ([514, 0, 0], 2));
    world.access(2 * M2 + 7 * K4, Access::FETCH).unwrap();
    assert_eq!(world.tdp.stats().pf_taken, 4, "the two do not drive each other out");
    // Until they are taken away for that.
    world.access(3 * M2, Access::READ).unwrap();
    assert_eq!(world.tdp.recover_nx_huge_pages(&world.host), Ok(flushed(514, 2)));
    world.access(2 * M2, Access::READ).unwrap();
    assert_eq!(world.sizes(), [0, 2, 0]);
}

#[test]
fn l5_where_no_large_page_could_be_nothing_is_remembered() {
    let mut world = world_with(PageSize::Size4K, NX);
    world.access(M2, Access::FETCH).unwrap();
    assert_eq!(world.tdp.stats().nx_lpage_splits, 0);
    // The host's page grows: the table is in nobody's way.
    world.host.mapped[0].size = PageSize::Size2M;
    world.access(M2 + K4, Access::READ).unwrap();
    assert_eq!(world.sizes(), [0, 1, 0]);
}
