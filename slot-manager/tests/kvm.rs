//! Slots of a real VM.
#![expect(unsafe_code, reason = "the raw ioctl tells what the kernel has")]

use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_userspace_memory_region as Region;
use kvm_ioctls::{Kvm, VmFd};
use memory_model::{AddrRange, AddressSpace, Gpa, Hva, MemoryError, PageSize, RamBlock, RegionTree};
use slot_manager::{Errno, KvmSlots, Slot, SlotError, SlotExecutor, SlotFlags, SlotId, SlotManager, SlotOp};

const PAGE: u64 = PageSize::Size4K.bytes();
/// A number that no test uses, to ask for the state with.
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
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
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
