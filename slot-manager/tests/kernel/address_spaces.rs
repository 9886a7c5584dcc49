//! Several address spaces: slots and generations of their own, numbers that name them (rules K1, K3 and R7).

use std::collections::HashSet;

use memory_model::Gpa;
use slot_manager::{Errno, KernelCaps, KernelMemslots, Side, SlotFault};

use crate::{LOG, PAGE, region};

fn kernel() -> KernelMemslots {
    KernelMemslots::with_caps(KernelCaps { address_spaces: 2, ..KernelCaps::default() })
}

#[test]
fn k1_ranges_never_overlap_in_an_address_space_and_may_in_two() {
    let mut kernel = kernel();
    kernel.set_user_memory_region(&region(0, 0, 0, PAGE, 0)).unwrap();
    kernel.set_user_memory_region(&region(1 << 16, 0, 0, 2 * PAGE, 0)).unwrap();
    let onto_it = region(1 << 16 | 1, 0, PAGE, PAGE, 0);
    assert_eq!(kernel.set_user_memory_region(&onto_it), Err(Errno::EEXIST));
    kernel.set_user_memory_region(&region(1, 0, PAGE, PAGE, 0)).unwrap();
    assert_eq!(kernel.set_user_memory_region(&region(2 << 16, 0, 0, PAGE, 0)), Err(Errno::EINVAL));
    let numbers = |as_id| {
        kernel.address_space(as_id).unwrap().slots().iter().map(|slot| slot.number()).collect::<Vec<_>>()
    };
    assert_eq!((numbers(0), numbers(1)), (vec![0, 1], vec![0x1_0000]));
    assert!(kernel.address_space(2).is_none());
    let SlotFault::Memory(slot) = kernel.fault(1, Gpa(PAGE), Side::Shared, true) else {
        panic!("memory of address space 1")
    };
    assert_eq!((slot.as_id, slot.number()), (1, 0x1_0000));
}

#[test]
fn k3_generations_go_in_steps_of_the_number_of_address_spaces_and_no_two_are_the_same() {
    let mut kernel = kernel();
    let generation = |kernel: &KernelMemslots, as_id| kernel.address_space(as_id).unwrap().generation();
    let mut seen = HashSet::from([generation(&kernel, 0), generation(&kernel, 1)]);
    assert_eq!(seen, HashSet::from([0, 1]));
    for (as_id, size, steps) in [(0, PAGE, 1), (1, PAGE, 1), (1, 0, 2), (0, 0, 2), (1, PAGE, 1)] {
        let before = [generation(&kernel, 0), generation(&kernel, 1)];
        kernel.set_user_memory_region(&region(as_id << 16, 0, 0, size, 0)).unwrap();
        assert_eq!(generation(&kernel, as_id), before[as_id as usize] + 2 * steps);
        assert_eq!(generation(&kernel, 1 - as_id), before[1 - as_id as usize]);
        assert!(seen.insert(generation(&kernel, as_id)));
    }
}

#[test]
fn each_address_space_has_its_own_logs() {
    let mut kernel = kernel();
    for as_id in [0, 1] {
        kernel.set_user_memory_region(&region(as_id << 16 | 3, LOG, 0, 2 * PAGE, 0)).unwrap();
    }
    assert!(kernel.mark_page_dirty(None, 1, Gpa(PAGE)));
    let mut log = |slot| {
        let mut bitmap = [7];
        kernel.get_dirty_log(slot, &mut bitmap).map(|()| bitmap[0])
    };
    assert_eq!((log(3), log(0x1_0003)), (Ok(0), Ok(2)));
    assert_eq!(
        (log(4), log(0x1_0004), log(0x2_0003)),
        (Err(Errno::ENOENT), Err(Errno::ENOENT), Err(Errno::EINVAL))
    );
}
