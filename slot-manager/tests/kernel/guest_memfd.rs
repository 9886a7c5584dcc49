//! Rows 4, 8, 15, 16, 20 and 21 of the errors: slots with private memory.

use kvm_bindings::{kvm_create_guest_memfd, kvm_userspace_memory_region2 as Region2};
use memory_model::Gpa;
use slot_manager::{Errno, KernelCaps, KernelMemslots, MemfdRange, SlotId};

use crate::{PAGE, region};

const MEMFD: u32 = 4;

fn region2(slot: u32, gpa: u64, size: u64, fd: u32, offset: u64) -> Region2 {
    Region2 {
        slot,
        flags: MEMFD,
        guest_phys_addr: gpa,
        memory_size: size,
        guest_memfd: fd,
        guest_memfd_offset: offset,
        ..Default::default()
    }
}

fn create(kernel: &mut KernelMemslots, size: u64, flags: u64) -> Result<u32, Errno> {
    kernel.create_guest_memfd(&kvm_create_guest_memfd { size, flags, ..Default::default() })
}

/// A file of four pages whose first two slot 0 has, at guest address 0.
fn kernel() -> (KernelMemslots, u32) {
    let mut kernel = KernelMemslots::new();
    let fd = create(&mut kernel, 4 * PAGE, 0).unwrap();
    kernel.set_user_memory_region2(&region2(0, 0, 2 * PAGE, fd, 0)).unwrap();
    (kernel, fd)
}

#[test]
fn each_condition_decides_with_its_errno() {
    let (mut kernel, fd) = kernel();
    let other = kernel.open_other_file();
    let good = region2(1, 0x10_0000, 2 * PAGE, fd, 2 * PAGE);
    let invalid = Errno::EINVAL;
    #[rustfmt::skip]
    let rows = [
        (Region2 { flags: MEMFD | 1, ..good }, invalid, "a flag this kernel"),
        (Region2 { flags: MEMFD | 2, ..good }, invalid, "a flag this kernel"),
        (Region2 { guest_memfd_offset: 0x800, ..good }, invalid, "the guest_memfd offset"),
        (Region2 { guest_memfd_offset: u64::MAX << 12, ..good }, invalid, "the guest_memfd offset"),
        (Region2 { slot: 1 << 16 | 1, guest_memfd_offset: 1, ..good }, invalid, "the guest_memfd offset"),
        (region2(0, 0, 2 * PAGE, fd, 0), invalid, "GUEST_MEMFD for a slot"),
        (Region2 { flags: 0, ..region2(0, 0, 2 * PAGE, fd, 0) }, invalid, "another size"),
        (Region2 { guest_phys_addr: 0, guest_memfd: 999, ..good }, Errno::EEXIST, "created on"),
        (Region2 { guest_memfd: 999, guest_memfd_offset: 1 << 40, ..good }, Errno::EBADF, "the guest_memfd is not"),
        (Region2 { guest_memfd: other, ..good }, invalid, "the file is no"),
        (Region2 { guest_memfd_offset: 3 * PAGE, ..good }, invalid, "the file is no"),
        (Region2 { guest_memfd_offset: 1 << 63, ..good }, invalid, "the file is no"),
        (Region2 { guest_memfd_offset: PAGE, ..good }, invalid, "that part"),
        (Region2 { guest_memfd_offset: 0, memory_size: 4 * PAGE, ..good }, invalid, "that part"),
        // The file is looked at before the last guest page is.
        (Region2 { guest_phys_addr: 1 << 52, guest_memfd: 999, ..good }, Errno::EBADF, "the guest_memfd is not"),
        (Region2 { guest_phys_addr: 1 << 52, ..good }, invalid, "created at"),
    ];
    for (call, errno, cause) in rows {
        let explained = kernel.explain2(&call);
        assert!(explained.is_some_and(|text| text.starts_with(cause)), "{call:x?}: {explained:?}");
        assert_eq!(kernel.set_user_memory_region2(&call), Err(errno), "{cause}");
    }
    // None of these kept a part of the file.
    kernel.set_user_memory_region2(&good).unwrap();
}

#[test]
fn a_slot_keeps_its_part_of_the_file_until_it_is_deleted() {
    let (mut kernel, fd) = kernel();
    let bound = kernel.slots().by_id(SlotId(0)).unwrap().guest_memfd;
    assert_eq!(bound, Some(MemfdRange { fd, offset: 0 }));
    let again = region2(1, 0x10_0000, PAGE, fd, PAGE);
    assert_eq!(kernel.set_user_memory_region2(&again), Err(Errno::EINVAL));
    kernel.set_user_memory_region(&region(0, 0, 0, 0, 0)).unwrap();
    kernel.set_user_memory_region2(&again).unwrap();
}

#[test]
fn a_closed_file_leaves_its_slots_without_private_memory() {
    let (mut kernel, fd) = kernel();
    kernel.close_file(fd).unwrap();
    assert_eq!(kernel.close_file(fd), Err(Errno::EBADF));
    for swapped in [false, true] {
        let slot = kernel.slots().by_gpa(Gpa(0)).unwrap();
        assert_eq!((slot.guest_memfd, slot.flags.bits()), (None, MEMFD), "{swapped}");
        kernel.set_user_memory_region(&region(7, 0, 0x10_0000, PAGE, 0)).ok();
    }
    let more = region2(1, 0x20_0000, PAGE, fd, 0);
    assert_eq!(kernel.set_user_memory_region2(&more), Err(Errno::EBADF));
}

#[test]
fn without_the_flag_descriptor_and_offset_count_for_nothing() {
    let mut kernel = KernelMemslots::new();
    kernel.set_user_memory_region2(&Region2 { flags: 0, ..region2(0, 0, PAGE, 999, 1) }).unwrap();
}

#[test]
fn files_have_whole_pages_and_known_flags() {
    let mut kernel = KernelMemslots::new();
    for (size, flags) in [(0, 0), (0x800, 0), (1 << 63, 0), (PAGE, 1)] {
        assert_eq!(create(&mut kernel, size, flags), Err(Errno::EINVAL), "{size:#x} {flags:#x}");
    }
    let mmap = KernelCaps { guest_memfd: Some(1), ..KernelCaps::default() };
    create(&mut KernelMemslots::with_caps(mmap), PAGE, 1).unwrap();
    let none = KernelCaps { guest_memfd: None, ..KernelCaps::default() };
    let mut without = KernelMemslots::with_caps(none);
    assert_eq!(create(&mut without, PAGE, 0), Err(Errno::ENOTTY));
    let call = region2(0, 0, PAGE, 0, 0);
    assert!(without.explain2(&call).unwrap().starts_with("a flag this kernel"));
}
