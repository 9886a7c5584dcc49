//! What the guest wrote is what is collected, by every way there is.

use memory_model::{DirtyClients, MemoryError};
use slot_manager::{Capability, DirtyMethod, KvmSlots, SlotError, SlotExecutor, SlotManager};

use crate::guest::{FIRST, Machine, PAGE, PAGES, vm};

const METHODS: [DirtyMethod; 4] = [
    DirtyMethod::Bitmap,
    DirtyMethod::ManualProtect { initially_set: false },
    DirtyMethod::ManualProtect { initially_set: true },
    // Never full: a kernel that emulates this guest makes many steps before it looks, and writes past the end of a
    // small ring.
    DirtyMethod::Ring { bytes: 1 << 20 },
];

fn machines() -> impl Iterator<Item = (DirtyMethod, Machine)> {
    METHODS.into_iter().filter_map(|method| Some((method, Machine::new(method)?)))
}

#[test]
fn a_guest_that_writes_while_slots_split_merge_and_move_has_every_page_collected() {
    for (method, machine) in machines() {
        let mut guest = machine.vcpu();
        let first = machine.collect();
        let full = method == DirtyMethod::ManualProtect { initially_set: true };
        assert_eq!(first.len() as u64, if full { PAGES } else { 0 }, "{method:?}");
        let pattern = |stride: u64| (FIRST..PAGES).step_by(stride as usize);
        let write = |guest: &mut crate::guest::Guest, stride: u64| {
            guest.write(FIRST, pattern(stride).count() as u64, stride, 1);
        };
        let mut cut = None;
        for (stride, split) in [(1, None), (3, Some(500)), (64, Some(77)), (7, None), (129, Some(999))] {
            write(&mut guest, stride);
            // The page at `split` leaves, which cuts the slot in two; or it comes back, which joins them.
            let update = machine.space.update(|tree| {
                if let Some(cut) = cut {
                    tree.remove(cut)?;
                }
                let Some(page) = split else { return Ok(None) };
                let cut = tree.reservation("cut", PAGE.into())?;
                tree.add_with_priority(tree.root(), page * PAGE, cut, 1)?;
                Ok::<_, MemoryError>(Some(cut))
            });
            cut = update.unwrap();
            let missing: Vec<_> = {
                let found = machine.collect();
                pattern(stride).filter(|page| !found.contains(page)).collect()
            };
            assert_eq!(missing, [0; 0], "{method:?} {stride}");
        }
    }
}

#[test]
fn d4_d7_pages_copied_after_they_were_collected_are_the_guests_memory_in_the_end() {
    for (method, machine) in machines() {
        let mut guest = machine.vcpu();
        let mut copy = vec![0; (PAGES * PAGE) as usize];
        let mut take = |pages: Vec<u64>| {
            for page in pages {
                let offset = (page * PAGE) as usize;
                machine.block.read(page * PAGE, &mut copy[offset..][..PAGE as usize]).unwrap();
            }
        };
        take((0..PAGES).collect());
        machine.collect();
        std::thread::scope(|scope| {
            let running = scope.spawn(|| guest.write(FIRST, PAGES - FIRST, 1, 40));
            while !running.is_finished() {
                take(machine.collect());
                // The guest may wait for the manager, to have a full ring reaped.
                std::thread::yield_now();
            }
            running.join().unwrap();
        });
        take(machine.collect());
        let mut memory = vec![0; copy.len()];
        machine.block.read(0, &mut memory).unwrap();
        let stale = (0..PAGES).filter(|page| {
            let page = (page * PAGE) as usize..((page + 1) * PAGE) as usize;
            copy[page.clone()] != memory[page]
        });
        assert_eq!(stale.collect::<Vec<_>>(), [0; 0], "{method:?}");
        assert_eq!(memory[(FIRST * PAGE) as usize], 1, "{method:?}: the guest's last write");
    }
}

#[test]
fn r5_a_log_that_ends_and_starts_again_is_empty() {
    for (method, machine) in machines() {
        let mut guest = machine.vcpu();
        let log = |clients| machine.space.update(|tree| tree.set_dirty_log(machine.ram, clients)).unwrap();
        machine.collect();
        guest.write(FIRST, 50, 1, 1);
        log(DirtyClients::empty());
        guest.write(FIRST, 50, 1, 1);
        assert!(machine.collect().is_empty(), "{method:?}");
        log(DirtyClients::VGA);
        let full = method == DirtyMethod::ManualProtect { initially_set: true };
        assert_eq!(machine.collect().len() as u64, if full { PAGES } else { 0 }, "{method:?}");
        guest.write(10, 1, 1, 1);
        assert_eq!(machine.collect(), [10], "{method:?}");
    }
}

#[test]
fn d5_d6_what_the_kernel_refuses_is_said() {
    let Some(vm) = vm("dirty methods") else { return };
    let mut slots = SlotManager::new(KvmSlots::new(vm.clone()));
    if Capability::DIRTY_LOG_RING.probe(&vm) != 0 {
        let error = slots.set_dirty_method(DirtyMethod::Ring { bytes: 5000 }).unwrap_err();
        assert_eq!(error.to_string(), "cannot log dirty pages by Ring { bytes: 5000 }: EINVAL");
        let error = slots.set_dirty_method(DirtyMethod::Ring { bytes: 1 << 31 }).unwrap_err();
        assert_eq!(error.to_string(), "cannot log dirty pages by Ring { bytes: 2147483648 }: E2BIG");
    }
    if Capability::MANUAL_DIRTY_LOG_PROTECT2.probe(&vm) != 0 {
        slots.set_dirty_method(DirtyMethod::ManualProtect { initially_set: false }).unwrap();
        let error = slots.set_dirty_method(DirtyMethod::Ring { bytes: 4096 }).unwrap_err();
        assert!(matches!(error, SlotError::DirtyMethodFixed { .. }), "{error}");
    }
}

#[test]
fn r7_every_capability_is_asked_of_the_vm_and_its_absence_has_a_reason() {
    let Some(vm) = vm("capabilities") else { return };
    for capability in Capability::ALL {
        match capability.require(&vm) {
            Ok(answer) => assert_eq!(answer, capability.probe(&vm)),
            Err(error) => {
                let text = format!("this kernel has no {} ({}", capability.without, capability.name);
                assert!(error.to_string().starts_with(&text), "{error}");
            }
        }
    }
    assert_eq!(KvmSlots::new(vm.clone()).limits().count, Capability::NR_MEMSLOTS.probe(&vm));
    let second = KvmSlots::in_address_space(vm.clone(), 1);
    match Capability::MULTI_ADDRESS_SPACE.probe(&vm) {
        0 | 1 => assert!(matches!(second, Err(SlotError::Missing { .. }))),
        _ => assert!(second.is_ok()),
    }
    let none = Capability { name: "KVM_CAP_NONE", number: 100_000, without: "such thing" };
    let error = none.require(&vm).unwrap_err();
    assert_eq!(error.to_string(), "this kernel has no such thing (KVM_CAP_NONE 100000)");
}
