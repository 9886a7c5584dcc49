//! Dirty bits on their way to the blocks: what an address space asks of its listener.

use memory_model::DirtyClients;
use slot_manager::DirtyMethod;

use crate::machine::{Machine, PAGE, PAGES};

fn taken(machine: &Machine, client: DirtyClients) -> Vec<u64> {
    let snapshot = machine.block.snapshot_and_clear_dirty(0..PAGES * PAGE, client);
    snapshot.pages().map(|offset| offset / PAGE).collect()
}

#[test]
fn a_sync_brings_the_kernels_bits_to_the_block() {
    for method in [DirtyMethod::Bitmap, DirtyMethod::Ring { bytes: 4096 }] {
        let machine = Machine::new(method);
        machine.write(5);
        machine.write(crate::machine::WINDOW + 7);
        machine.space.sync_dirty_log(false).unwrap();
        assert_eq!(taken(&machine, DirtyClients::MIGRATION), [5, 7], "{method:?}");
        machine.space.sync_dirty_log(false).unwrap();
        assert!(taken(&machine, DirtyClients::MIGRATION).is_empty(), "{method:?}");
    }
}

#[test]
fn d1_with_manual_protection_bits_come_until_they_are_cleared() {
    let machine = Machine::new(DirtyMethod::ManualProtect { initially_set: false });
    machine.write(100);
    machine.write(5);
    for expected in [vec![5, 100], vec![5, 100]] {
        machine.space.sync_dirty_log(false).unwrap();
        assert_eq!(taken(&machine, DirtyClients::MIGRATION), expected);
    }
    // As who copies page 5 does, before the copy.
    machine.space.clear_dirty_log(machine.ram, 5 * PAGE, PAGE).unwrap();
    machine.write(6);
    machine.space.sync_dirty_log(false).unwrap();
    assert_eq!(taken(&machine, DirtyClients::MIGRATION), [6, 100]);
}

#[test]
fn r9_pages_of_a_slot_that_is_gone_reach_the_block() {
    let machine = Machine::new(DirtyMethod::Bitmap);
    machine.write(80);
    machine.space.update(|tree| tree.set_enabled(machine.ram, false)).unwrap();
    // There is another range left to ask for: the window is the same region's.
    machine.space.update(|tree| tree.set_enabled(machine.ram, true)).unwrap();
    machine.space.sync_dirty_log(true).unwrap();
    assert_eq!(taken(&machine, DirtyClients::MIGRATION), [80]);
}
