//! The errors of setting a slot, in the kernel's order, and the look-ups.

use kvm_bindings::kvm_userspace_memory_region as Region;
use memory_model::{Gpa, Hva};
use slot_manager::{Errno, KernelCaps, KernelMemslots, MAX_GFN, MAX_PAGES, SlotId, SlotRecord};

use crate::{LOG, READONLY, region, two_slots};

#[test]
fn each_condition_decides_with_its_errno() {
    let base = 0x7f00_0000_0000;
    let invalid = Err(Errno::EINVAL);
    #[rustfmt::skip]
    let rows = [
        (region(2, 4, 0, 0x1000, base), invalid, "a flag other"),
        (region(32764, 0, 0, 0x1000, base), invalid, "a slot number"),
        (region(2, 0, 0, 0x1800, base), invalid, "the size is not whole"),
        (region(2, 0, 0x800, 0x1000, base), invalid, "the guest address does not start"),
        (region(0, 0, 0x800, 0, base), invalid, "the guest address does not start"),
        (region(2, 0, 0, 0x1000, base + 1), invalid, "the host address does not start"),
        (region(0, 0, 0, 0, base + 1), invalid, "the host address does not start"),
        (region(2, 0, 0, 0x1000, 0x7fff_ffff_f000), invalid, "host addresses outside"),
        (region(0x1_0002, 0, 0, 0x1000, base), invalid, "an address space"),
        (region(2, 0, u64::MAX - 0xfff, 0x1000, base), invalid, "guest addresses that wrap"),
        (region(2, 0, 0, (MAX_PAGES + 1) << 12, 0), invalid, "more than 2^31 - 1"),
        (region(2, 0, 0, 0, 0), invalid, "nothing to delete"),
        (region(0, LOG, 0x5000, 0, 0x5000), Ok(()), "size 0 deletes"),
        (region(0, 0, 0x1_0000, 0x5000, base), invalid, "another size"),
        (region(0, 0, 0x1_0000, 0x4000, base + 0x1000), invalid, "another size"),
        (region(0, READONLY, 0x1_0000, 0x4000, base), invalid, "another size"),
        (region(0, 0, 0x1_0000, 0x4000, base), Ok(()), "the slot is like that"),
        (region(2, 0, 0x1_3000, 0x1000, base), Err(Errno::EEXIST), "created on"),
        (region(0, 0, 0x1_d000, 0x4000, base), Err(Errno::EEXIST), "created on"),
        (region(2, 0, (MAX_GFN + 1) << 12, 0x1000, base), invalid, "created at"),
    ];
    for (call, answer, cause) in rows {
        let mut kernel = two_slots();
        let explained = kernel.explain(&call);
        assert!(explained.is_some_and(|text| text.starts_with(cause)), "{call:x?}: {explained:?}");
        assert_eq!(kernel.set_user_memory_region(&call).map(drop), answer, "{cause}");
    }
}

#[test]
fn of_two_faults_in_one_call_the_first_of_the_table_decides() {
    type Fault = fn(&mut Region);
    let faults: [(&str, Fault); 9] = [
        ("a flag", |call| call.flags |= 8),
        ("a slot number", |call| call.slot |= 0x7fff),
        ("the size", |call| call.memory_size += 0x10),
        ("the guest address does", |call| call.guest_phys_addr += 0x10),
        ("the host address does", |call| call.userspace_addr += 0x10),
        ("host addresses", |call| call.userspace_addr |= 1 << 62),
        ("an address space", |call| call.slot |= 1 << 16),
        ("guest addresses that wrap", |call| call.guest_phys_addr |= u64::MAX << 12),
        ("more than", |call| call.memory_size += (MAX_PAGES + 1) << 12),
    ];
    let kernel = two_slots();
    for (first, (cause, one)) in faults.iter().enumerate() {
        for (_, other) in &faults[first..] {
            let mut call = region(2, 0, 0x1_0000, 0x1000, 0x1_0000);
            other(&mut call);
            one(&mut call);
            let explained = kernel.explain(&call).unwrap();
            assert!(explained.starts_with(cause), "{call:x?}: {explained}, not {cause}");
        }
    }
    // Shape before overlap, overlap before the last guest page.
    let moved_and_flipped = region(0, READONLY, 0x2_0000, 0x4000, 0x7f00_0000_0000);
    assert!(kernel.explain(&moved_and_flipped).unwrap().starts_with("another size"));
    let mut kernel = kernel;
    kernel.set_user_memory_region(&region(2, 0, MAX_GFN << 12, 0x1000, 0)).unwrap();
    let over_the_top = region(3, 0, MAX_GFN << 12, 0x2000, 0);
    assert_eq!(kernel.set_user_memory_region(&over_the_top), Err(Errno::EEXIST));
}

#[test]
fn row_4_a_kernel_without_read_only_slots_does_not_know_the_flag() {
    let mut kernel = KernelMemslots::with_caps(KernelCaps { readonly: false, ..KernelCaps::default() });
    let call = region(0, READONLY, 0, 0x1000, 0);
    assert!(kernel.explain(&call).unwrap().starts_with("a flag this kernel does not have"));
    assert_eq!(kernel.set_user_memory_region(&call), Err(Errno::EINVAL));
    kernel.set_user_memory_region(&region(0, LOG, 0, 0x1000, 0)).unwrap();
}

#[test]
fn row_22_the_last_guest_page_is_the_processors() {
    let mut kernel = KernelMemslots::with_caps(KernelCaps { max_gfn: 0xff, ..KernelCaps::default() });
    kernel.set_user_memory_region(&region(0, 0, 0xff000, 0x1000, 0)).unwrap();
    // Over another slot's pages comes first.
    assert_eq!(kernel.set_user_memory_region(&region(1, 0, 0xff000, 0x2000, 0)), Err(Errno::EEXIST));
    assert_eq!(kernel.set_user_memory_region(&region(1, 0, 0x10_0000, 0x1000, 0)), Err(Errno::EINVAL));
    kernel.set_user_memory_region(&region(0, LOG, 0xff000, 0x1000, 0)).unwrap();
}

#[test]
fn slots_are_found_by_number_guest_and_host_address() {
    let kernel = two_slots();
    let ids = |slots: Vec<&slot_manager::Memslot>| slots.iter().map(|slot| slot.id.0).collect::<Vec<_>>();
    let found = |gpa| kernel.gfn_to_memslot(Gpa(gpa)).map(|slot| slot.id);
    assert_eq!(found(0xffff), None);
    assert_eq!(found(0x1_0000), Some(SlotId(0)));
    assert_eq!(found(0x1_3fff), Some(SlotId(0)));
    assert_eq!(found(0x1_4000), None);
    assert_eq!(found(0x2_0000), Some(SlotId(1)));
    // Both show the same memory (K1).
    let hva = Hva(0x7f00_0000_3fff);
    let mut both: Vec<_> = kernel.slots().by_hva(hva).collect();
    both.sort_by_key(|slot| slot.id);
    assert_eq!(
        both.iter().map(|slot| slot.gpa_of(hva)).collect::<Vec<_>>(),
        [Some(Gpa(0x1_3fff)), Some(Gpa(0x2_3fff))]
    );
    assert_eq!(ids(both), [0, 1]);
    assert_eq!(kernel.slots().by_hva(Hva(0x7f00_0000_4000)).count(), 0);
    assert_eq!(kernel.slots().by_hva(Hva(0x7eff_ffff_ffff)).count(), 0);
}
