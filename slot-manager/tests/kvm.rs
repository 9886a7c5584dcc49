//! The in-process kernel against the real one, and slots of a real VM.
#![expect(unsafe_code, reason = "the raw ioctl is what the in-process kernel is compared with")]

use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_userspace_memory_region as Region;
use kvm_ioctls::{Kvm, VmFd};
use memory_model::{AddrRange, AddressSpace, Gpa, Hva, MemoryError, PageSize, RamBlock, RegionTree};
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseResult, TestRunner};
use slot_manager::{
    Errno, KernelMemslots, KvmSlots, MAX_GFN, Slot, SlotError, SlotExecutor, SlotFlags, SlotId, SlotManager,
    SlotOp, USER_END,
};

const PAGE: u64 = PageSize::Size4K.bytes();
/// Guest pages that the small slots of the random sequences are put on.
const ARENA: u64 = 24;
/// A number that no sequence uses, to ask for the state with.
const PROBE: u32 = 100;

/// A VM, or a line that says why nothing is checked.
fn vm(what: &str) -> Option<(Kvm, VmFd)> {
    let opened = Kvm::new().and_then(|kvm| kvm.create_vm().map(|vm| (kvm, vm)));
    opened.inspect_err(|error| println!("not checked: {what}: /dev/kvm: {error}")).ok()
}

fn ioctl(vm: &VmFd, region: &Region) -> Result<(), Errno> {
    // SAFETY: these VMs have no vCPU, so nothing ever reaches the memory.
    unsafe { vm.set_user_memory_region(*region) }.map_err(|error| Errno(error.errno()))
}

fn region(slot: u32, flags: u32, gpa: u64, size: u64, hva: u64) -> Region {
    Region { slot, flags, guest_phys_addr: gpa, memory_size: size, userspace_addr: hva }
}

/// Calls that mostly work on a few slots in a small arena, with every fault of the table mixed in.
fn any_region() -> impl Strategy<Value = Region> {
    let small = |pages| (0..pages).prop_map(|page| page * PAGE);
    let slot = prop_oneof![
        20 => 0..6u32,
        1 => select(vec![32763, 32764, 0x7fff, 0xffff, 0x1_0000, 0x7_0001, 0xffff_0000]),
    ];
    let flags = prop_oneof![20 => 0..4u32, 1 => select(vec![4, 5, 8, 1 << 31])];
    let gpa = prop_oneof![
        30 => small(ARENA),
        1 => select(vec![1, 0x800, PAGE + 0x200]),
        2 => select(vec![1 << 52, (1 << 52) - PAGE, 1 << 63, u64::MAX - 0xfff, u64::MAX - 0x1fff]),
    ];
    let size = prop_oneof![
        8 => Just(0),
        30 => small(5),
        1 => select(vec![1, 0x800, PAGE + 1, u64::MAX]),
        1 => select(vec![1 << 43, (1 << 43) + PAGE, 1 << 63, u64::MAX - 0xfff]),
        1 => Just(1 << 30),
    ];
    let hva = prop_oneof![
        30 => small(3).prop_map(|offset| 0x7f00_0000_0000 + offset),
        1 => Just(0),
        1 => select(vec![1, 0x7f00_0000_0800, 1 << 63, u64::MAX - 0xfff]),
    ];
    (slot, flags, gpa, size, hva)
        .prop_map(|(slot, flags, gpa, size, hva)| region(slot, flags, gpa, size, hva))
}

/// The state of the kernel, asked by calls that change nothing if it is as the model says.
fn same_state(vm: &VmFd, model: &KernelMemslots) -> TestCaseResult {
    for page in 0..ARENA + 8 {
        let probe = region(PROBE, 0, page * PAGE, PAGE, 0);
        let free = model.gfn_to_memslot(Gpa(page * PAGE)).is_none();
        prop_assert_eq!(
            ioctl(vm, &probe),
            if free { Ok(()) } else { Err(Errno::EEXIST) },
            "page {:#x}",
            page
        );
        if free {
            ioctl(vm, &Region { memory_size: 0, ..probe }).expect("it was created just now");
        }
    }
    for id in (0..6).chain([32763]) {
        let Some(slot) = model.slots().by_id(SlotId(id)) else {
            let delete = ioctl(vm, &region(id, 0, 0, 0, 0));
            prop_assert_eq!(delete, Err(Errno::EINVAL), "slot {} is there", id);
            continue;
        };
        let size = slot.npages() * PAGE;
        let same = region(id, slot.flags.bits(), slot.gpa.first().0, size, slot.userspace_addr.0);
        let logs = slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES);
        // A bitmap long enough for the longest slot there is, whatever the model believes.
        prop_assert_eq!(vm.get_dirty_log(id, 1 << 30).is_ok(), logs, "{:?}", slot);
        prop_assert_eq!(ioctl(vm, &same), Ok(()), "{:?}", slot);
        let flipped = Region { flags: same.flags ^ SlotFlags::READONLY.bits(), ..same };
        prop_assert_eq!(ioctl(vm, &flipped), Err(Errno::EINVAL), "{:?}", slot);
    }
    Ok(())
}

#[test]
fn random_calls_get_the_kernels_answers_and_leave_the_kernels_state() {
    let Some((kvm, probe)) = vm("the errors of KVM_SET_USER_MEMORY_REGION") else { return };
    // With hardware paging the last guest page is the processor's; without, it is ours.
    let top = region(0, 0, MAX_GFN * PAGE, PAGE, 0);
    let widest = ioctl(&probe, &top).is_ok();
    if !widest {
        println!("not checked: the last guest page: this host has fewer than 52 address bits");
    }
    let calls = proptest::collection::vec(any_region(), 1..60);
    let mut runner = TestRunner::new(Config { cases: 120, failure_persistence: None, ..Config::default() });
    let verdict = runner.run(&calls, |calls| {
        let vm = kvm.create_vm().expect("a VM could be made before");
        let mut model = KernelMemslots::new();
        for call in calls.iter().filter(|call| widest || call.guest_phys_addr != top.guest_phys_addr) {
            let expected = model.set_user_memory_region(call).map(drop);
            prop_assert_eq!(ioctl(&vm, call), expected, "{:x?}: {:?}", call, model.explain(call));
        }
        same_state(&vm, &model)
    });
    verdict.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn user_space_ends_where_the_kernel_ends_it() {
    let Some((_kvm, vm)) = vm("the end of user space") else { return };
    if ioctl(&vm, &region(0, 0, 0, PAGE, USER_END.0)).is_ok() {
        println!("not checked: the end of user space: this kernel's lies elsewhere");
        return;
    }
    let mut model = KernelMemslots::new();
    let mut both = |call: Region| {
        let expected = model.set_user_memory_region(&call).map(drop);
        assert_eq!(ioctl(&vm, &call), expected, "{call:x?}");
        expected
    };
    for (hva, size, expected) in [
        (USER_END.0 - PAGE, PAGE, Ok(())),
        (USER_END.0 - PAGE, 2 * PAGE, Err(Errno::EINVAL)),
        (USER_END.0, PAGE, Err(Errno::EINVAL)),
        // Size 0 deletes, and has its host address checked all the same.
        (USER_END.0, 0, Ok(())),
        (USER_END.0 + PAGE, 0, Err(Errno::EINVAL)),
        (1 << 62, PAGE, Err(Errno::EINVAL)),
    ] {
        both(region(1, 0, 0, PAGE, 0)).unwrap();
        let slot = if size == 0 { 1 } else { 2 };
        assert_eq!(both(region(slot, 0, 16 * PAGE, size, hva)), expected, "{hva:#x} {size:#x}");
        for slot in [1, 2] {
            let _ = both(region(slot, 0, 0, 0, 0));
        }
    }
}

fn slot(id: u32, gpa: u64, bytes: u64, block: &Arc<RamBlock>) -> Slot {
    Slot {
        id: SlotId(id),
        gpa: AddrRange::new(Gpa(gpa), bytes.into()).unwrap(),
        hva: block.hva(),
        flags: SlotFlags::empty(),
        name: "ram".into(),
        block: block.clone(),
    }
}

#[test]
fn an_address_space_sets_the_slots_of_a_vm() {
    let Some((_kvm, vm)) = vm("an address space on KVM") else { return };
    let vm = Arc::new(vm);
    let slots = Arc::new(Mutex::new(SlotManager::new(KvmSlots::new(vm.clone()))));
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap());
    space.register(slots.clone()).unwrap();
    let block = RamBlock::anonymous("ram", 0x20_0000).unwrap();
    let rom = space.update(|tree| {
        let ram = tree.ram("ram", block.clone())?;
        tree.add(tree.root(), 0, ram)?;
        let rom = tree.alias("rom", ram, 0, 0x4000)?;
        tree.set_readonly(rom, true)?;
        tree.add(tree.root(), 0x8000_0000, rom)?;
        Ok::<_, MemoryError>(rom)
    });
    let rom = rom.unwrap();
    let taken = |gpa: u64| {
        let probe = region(PROBE, 0, gpa, PAGE, 0);
        let free = ioctl(&vm, &probe).is_ok();
        if free {
            ioctl(&vm, &Region { memory_size: 0, ..probe }).unwrap();
        }
        !free
    };
    assert!(taken(0) && taken(0x1f_f000) && taken(0x8000_0000) && !taken(0x20_0000));
    space.update(|tree| tree.set_offset(rom, 0x9000_0000)).unwrap();
    assert!(taken(0x9000_3000) && !taken(0x8000_0000));
    assert_eq!(slots.lock().unwrap().registry().by_hva(block.hva()).count(), 2);

    space.unregister(&slots).unwrap();
    assert!(!taken(0) && !taken(0x9000_0000));
}

#[test]
fn only_mapped_memory_is_lent_to_a_guest() {
    let Some((_kvm, vm)) = vm("memory that is not ours") else { return };
    let mut slots = KvmSlots::new(Arc::new(vm));
    let foreign = RamBlock::foreign("theirs", Hva(0x10_0000), 0x1000).unwrap();
    let ours = RamBlock::anonymous("ours", 0x4000).unwrap();
    let past_the_end = Slot { hva: Hva(ours.hva().0 + 0x1000), ..slot(0, 0, 0x4000, &ours) };
    let before = Slot { hva: Hva(ours.hva().0 - 0x1000), ..slot(0, 0, 0x1000, &ours) };
    for bad in [slot(0, 0, 0x1000, &foreign), past_the_end, before] {
        let moved =
            SlotOp::Move { to: AddrRange::new(Gpa(0x10_0000), bad.gpa.bytes()).unwrap(), slot: bad.clone() };
        for op in [SlotOp::Create(bad), moved] {
            let error = slots.execute(&op).unwrap_err();
            assert!(matches!(error, SlotError::NotMapped { .. }), "{error}");
        }
    }
    slots.execute(&SlotOp::Create(slot(0, 0, 0x4000, &ours))).unwrap();
}

#[test]
fn memory_stays_mapped_until_the_kernel_lets_go_of_it() {
    let Some((_kvm, vm)) = vm("who keeps the memory of a slot") else { return };
    let vm = Arc::new(vm);
    let mut slots = KvmSlots::new(vm.clone());
    let (one, two) =
        (RamBlock::anonymous("one", 0x1000).unwrap(), RamBlock::anonymous("two", 0x1000).unwrap());
    let (first, second) = (slot(0, 0, 0x1000, &one), slot(1, 0x1000, 0x1000, &two));
    slots.execute(&SlotOp::Create(first.clone())).unwrap();
    slots.execute(&SlotOp::Create(second)).unwrap();
    let users = |block: &Arc<RamBlock>| Arc::strong_count(block);
    // Ours, the one in `first`, and the executor's.
    assert_eq!((users(&one), users(&two)), (3, 2));
    slots.execute(&SlotOp::Delete(first.clone())).unwrap();
    assert_eq!((users(&one), users(&two)), (2, 2));
    let refused = slots.execute(&SlotOp::Delete(first)).unwrap_err();
    let expected = format!("cannot delete slot 0 (ram at 0x0-0xfff -> {}): EINVAL", one.hva());
    assert_eq!(refused.to_string(), expected);
    drop(slots);
    assert_eq!(users(&two), 1);
    ioctl(&vm, &region(7, 0, 0x1000, PAGE, 0)).expect("its slots went with it");
}
