//! Slots with a guest_memfd (rule R6), of a real VM and of the kernel in this process.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_create_guest_memfd;
use memory_model::{AddressSpace, DirtyClients, Gpa, MemoryError, RamBlock, RamOptions, RegionTree};
use slot_manager::{
    Capability, Errno, KernelMemslots, KvmSlots, SlotError, SlotExecutor, SlotFlags, SlotManager,
    create_guest_memfd,
};

use crate::guest::{PAGE, vm};

#[test]
fn r6_private_memory_of_kvm_has_slots_that_are_never_logged_read_only_or_moved() {
    let Some(vm) = vm("guest_memfd") else { return };
    let fd = match create_guest_memfd(&vm, 16 * PAGE) {
        Err(error @ SlotError::Missing { .. }) => {
            println!("not checked: guest_memfd: {error}");
            return;
        }
        made => made.unwrap(),
    };
    let error = create_guest_memfd(&vm, 100).unwrap_err();
    assert_eq!(error.to_string(), "cannot make a guest_memfd of 0x64 bytes: EINVAL");
    assert_ne!(Capability::USER_MEMORY2.probe(&vm), 0);
    private_memory(KvmSlots::new(vm), fd);
}

#[test]
fn r6_private_memory_in_process_has_slots_that_are_never_logged_read_only_or_moved() {
    let mut kernel = KernelMemslots::new();
    let fd = OwnedFd::from(File::open("/dev/null").unwrap());
    let request = |size| kvm_create_guest_memfd { size, ..Default::default() };
    assert_eq!(kernel.create_guest_memfd_as(fd.as_fd(), &request(100)), Err(Errno::EINVAL));
    kernel.create_guest_memfd_as(fd.as_fd(), &request(16 * PAGE)).unwrap();
    private_memory(kernel, fd);
}

/// `fd` stands for 16 pages of private memory.
fn private_memory(executor: impl SlotExecutor + 'static, fd: OwnedFd) {
    let options = RamOptions { guest_memfd: Some(fd), ..RamOptions::default() };
    let block = RamBlock::create("private", 16 * PAGE, options).unwrap();
    let manager = Arc::new(Mutex::new(SlotManager::new(executor)));
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    space.register(manager.clone()).unwrap();
    let ram = space.update(|tree| {
        let ram = tree.ram("private", block.clone())?;
        tree.add(tree.root(), 0, ram)?;
        Ok::<_, MemoryError>(ram)
    });
    let ram = ram.unwrap();
    let flags = |gpa| manager.lock().unwrap().registry().by_gpa(Gpa(gpa)).map(|slot| slot.flags);
    assert_eq!(flags(0), Some(SlotFlags::GUEST_MEMFD));

    let refused = |error: MemoryError| std::error::Error::source(&error).unwrap().to_string();
    let text = "private at 0x0-0xffff: memory with a guest_memfd cannot be";
    let logged = space.update(|tree| tree.set_dirty_log(ram, DirtyClients::MIGRATION)).unwrap_err();
    assert_eq!(refused(logged), format!("{text} logged"));
    let readonly = space.update(|tree| tree.set_readonly(ram, true)).unwrap_err();
    assert_eq!(refused(readonly), format!("{text} read-only"));
    assert_eq!(flags(0), Some(SlotFlags::GUEST_MEMFD));

    // Deleted and made anew: the kernel moves none.
    space.update(|tree| tree.set_offset(ram, 0x10_0000)).unwrap();
    assert_eq!((flags(0), flags(0x10_0000)), (None, Some(SlotFlags::GUEST_MEMFD)));
    // The kernel knows which part of the file is bound already.
    let again = space.update(|tree| {
        let mirror = tree.alias("mirror", ram, 0, (4 * PAGE).into())?;
        tree.add(tree.root(), 0x20_0000, mirror)
    });
    assert!(refused(again.unwrap_err()).ends_with("GUEST_MEMFD): EINVAL"));
    space.unregister(&manager).unwrap();
    assert!(manager.lock().unwrap().registry().is_empty());
}
