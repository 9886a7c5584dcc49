//! Slots with a guest_memfd (rules R6 and R10), of a real VM and of the kernel in this process.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use kvm_bindings::kvm_create_guest_memfd;
use kvm_ioctls::Kvm;
use memory_model::{
    AddrRange, AddressSpace, Backing, DirtyClients, Gpa, MemoryError, RamBlock, RamOptions, RegionId,
    RegionTree,
};
use rustix::fs::FallocateFlags;
use slot_manager::{
    Capability, Errno, KernelMemslots, KvmSlots, Side, SlotError, SlotExecutor, SlotFlags, SlotManager,
    create_guest_memfd,
};

use crate::guest::{PAGE, vm};

/// `KVM_X86_SW_PROTECTED_VM`: a VM with private memory, for want of a processor that encrypts it.
const SW_PROTECTED_VM: u64 = 1;

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

#[test]
fn r10_pages_of_kvm_are_made_private_and_shared_and_leave_nothing_behind() {
    let what = "conversion on KVM";
    let protected =
        || Ok::<_, kvm_ioctls::Error>(Arc::new(Kvm::new()?.create_vm_with_type(SW_PROTECTED_VM)?));
    // A VM of the usual type says in words what it lacks.
    let Some(vm) = protected().ok().or_else(|| vm(what)) else { return };
    let all = AddrRange::new(Gpa(0), (16 * PAGE).into()).unwrap();
    let mut slots = KvmSlots::new(vm.clone());
    let fd = match slots.set_side(all, Side::Shared).and_then(|()| create_guest_memfd(&vm, 16 * PAGE)) {
        Err(error @ SlotError::Missing { .. }) => {
            println!("not checked: {what}: {error}");
            return;
        }
        made => made.unwrap(),
    };
    let part = |first, count| AddrRange::new(Gpa(first * PAGE), u128::from(count * PAGE)).unwrap();
    let error = slots.set_side(AddrRange::new(Gpa(0x800), PAGE.into()).unwrap(), Side::Private).unwrap_err();
    assert_eq!(error.to_string(), "cannot make 0x800-0x17ff private: EINVAL");

    let file = File::from(fd.try_clone().unwrap());
    let allocate = || rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 16 * PAGE).unwrap();
    let bytes = || file.metadata().unwrap().blocks() * 512;
    allocate();
    let full = bytes();
    let options =
        RamOptions { backing: Backing::Memfd, shared: true, guest_memfd: Some(fd), ..RamOptions::default() };
    let block = RamBlock::create("private", 16 * PAGE, options).unwrap();
    let (manager, _space, _) = memory_of(slots, &block);
    block.write(0, &[7; 16 * PAGE as usize]).unwrap();
    manager.lock().unwrap().convert(part(2, 3), Side::Private).unwrap();
    let byte = |page| {
        let mut seen = [9];
        block.read(page * PAGE, &mut seen).unwrap();
        seen[0]
    };
    assert_eq!([1, 2, 4, 5].map(byte), [7, 0, 0, 7]);
    manager.lock().unwrap().convert(part(0, 16), Side::Shared).unwrap();
    // Not all kernels count the blocks of a guest_memfd.
    assert!(full == 0 || bytes() == 0, "{:#x} bytes of {full:#x}", bytes());
}

type Manager<E> = Arc<Mutex<SlotManager<E>>>;

/// A guest whose memory is this block, from 0 on.
fn memory_of<E: SlotExecutor + 'static>(
    executor: E,
    block: &Arc<RamBlock>,
) -> (Manager<E>, AddressSpace, RegionId) {
    let manager = Arc::new(Mutex::new(SlotManager::new(executor)));
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    space.register(manager.clone()).unwrap();
    let ram = space.update(|tree| {
        let ram = tree.ram("private", block.clone())?;
        tree.add(tree.root(), 0, ram)?;
        Ok::<_, MemoryError>(ram)
    });
    (manager, space, ram.unwrap())
}

/// `fd` stands for 16 pages of private memory.
fn private_memory(executor: impl SlotExecutor + 'static, fd: OwnedFd) {
    let options = RamOptions { guest_memfd: Some(fd), ..RamOptions::default() };
    let block = RamBlock::create("private", 16 * PAGE, options).unwrap();
    let (manager, space, ram) = memory_of(executor, &block);
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
