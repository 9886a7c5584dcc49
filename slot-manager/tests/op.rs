//! Operations as calls of the ioctl, and the way back.

use memory_model::{AddrRange, Gpa, Hva, RamBlock};
use slot_manager::{Errno, KernelMemslots, Memslot, Slot, SlotExecutor, SlotFlags, SlotId, SlotOp};

fn slot() -> Slot {
    Slot {
        id: SlotId(3),
        gpa: AddrRange::new(Gpa(0x10_0000), 0x4000).unwrap(),
        hva: Hva(0x70_0000),
        flags: SlotFlags::READONLY,
        name: "rom".into(),
        block: RamBlock::foreign("rom", Hva(0x70_0000), 0x4000).unwrap(),
    }
}

fn memslots(kernel: &KernelMemslots) -> Vec<Memslot> {
    kernel.slots().iter().copied().collect()
}

#[test]
fn an_operation_leaves_the_slot_it_names_and_its_inverse_takes_it_back() {
    let slot = slot();
    let flags = SlotFlags::READONLY | SlotFlags::LOG_DIRTY_PAGES;
    let to = AddrRange::new(Gpa(0x10_1000), 0x4000).unwrap();
    for op in [
        SlotOp::Create(slot.clone()),
        SlotOp::Move { slot: slot.clone(), to },
        SlotOp::SetFlags { slot: slot.clone(), flags },
        SlotOp::Delete(slot.clone()),
    ] {
        let mut kernel = KernelMemslots::new();
        if !matches!(op, SlotOp::Create(_)) {
            kernel.execute(&SlotOp::Create(slot.clone())).unwrap();
        }
        let before = memslots(&kernel);
        kernel.execute(&op).unwrap();
        let expected = op.result().map(|Slot { id, gpa, hva, flags, .. }| Memslot {
            id,
            gpa,
            userspace_addr: hva,
            flags,
            as_id: 0,
            guest_memfd: None,
            invalid: false,
        });
        assert_eq!(memslots(&kernel), Vec::from_iter(expected), "{op}");
        assert_ne!(memslots(&kernel), before, "{op}");
        kernel.execute(&op.inverse()).unwrap();
        assert_eq!(memslots(&kernel), before, "{op}");
        assert_eq!(op.inverse().inverse(), op);
    }
}

#[test]
fn a_slot_of_the_whole_address_space_is_not_taken_for_a_deletion() {
    let everything = Slot { gpa: AddrRange::new(Gpa(0), 1 << 64).unwrap(), ..slot() };
    let mut kernel = KernelMemslots::new();
    kernel.execute(&SlotOp::Create(slot())).unwrap();
    let error = kernel.execute(&SlotOp::Create(everything)).unwrap_err();
    let text = "cannot create slot 3 (rom at 0x0-0xffffffffffffffff -> 0x700000, READONLY): EINVAL";
    assert_eq!(error.to_string(), text);
}

#[test]
fn errors_of_the_kernel_have_their_names() {
    assert_eq!((Errno::EEXIST.to_string(), format!("{:?}", Errno(71))), ("EEXIST".into(), "errno 71".into()));
}
