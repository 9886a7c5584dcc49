//! Leaves that are there before the guest is (`KVM_PRE_FAULT_MEMORY`): it takes no fault for them.
#![expect(unsafe_code, reason = "kvm-ioctls has no such call, and the vCPU's file is not ours")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use memory_model::{Gpa, PageSize, Pages};
use slot_manager::Capability;
use vcpu::{Entry, Exit, HostView, KvmVm};

use crate::guest::{DATA, Guest};
use crate::live::{PAGES, frame, ram, touch};
use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live, Need::Capability(PRE_FAULT_MEMORY)];
    pages_that_are_mapped_ahead_take_no_fault,
);

const PRE_FAULT_MEMORY: Capability =
    Capability { name: "KVM_CAP_PRE_FAULT_MEMORY", number: 236, without: "mapping ahead" };

const PAGE: u64 = PageSize::Size4K.bytes();

/// One more vCPU, which does not run.
fn vcpu(vm: &KvmVm) -> OwnedFd {
    const KVM_CREATE_VCPU: libc::Ioctl = 0xae41;
    // SAFETY: the argument is the vCPU's number.
    let fd = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CREATE_VCPU, 1) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Maps a range, in as many calls as it takes.
fn pre_fault(vcpu: &OwnedFd, gpa: u64, bytes: u64) -> io::Result<()> {
    const KVM_PRE_FAULT_MEMORY: libc::Ioctl = (3 << 30 | 64 << 16 | 0xae << 8 | 0xd5) as libc::Ioctl;
    // `struct kvm_pre_fault_memory`: what is left of the range, flags, five reserved words.
    let mut argument: [u64; 8] = [gpa, bytes, 0, 0, 0, 0, 0, 0];
    while argument[1] > 0 {
        // SAFETY: the argument has the size that the request names.
        if unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_PRE_FAULT_MEMORY, argument.as_mut_ptr()) } < 0 {
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                return Err(error);
            }
        }
    }
    Ok(())
}

fn pages_that_are_mapped_ahead_take_no_fault() {
    let mut guest = Guest::ring3_on(ram(Pages::Small), touch);
    guest.ram.write(DATA, &vec![1; (PAGES * PAGE) as usize]).unwrap();
    let other = vcpu(&guest.vm);
    pre_fault(&other, DATA, PAGES * PAGE).unwrap();
    assert!(pre_fault(&other, 1 << 40, PAGE).is_err(), "no slot is there");
    let tables = guest.live().tables().unwrap();
    for gpa in (DATA..).step_by(PAGE as usize).take(PAGES as usize) {
        let leaf = tables.leaves().find(|leaf| leaf.gpa == Gpa(gpa));
        assert_eq!(leaf.map(|leaf| leaf.hpa.raw()), frame(&guest.ram, gpa), "{gpa:#x}");
    }
    assert!(matches!(guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, .. }));
    let taken = guest.vm.violations().unwrap();
    assert!(taken < PAGES, "{taken} faults");
    assert!(guest.live().check().unwrap().is_clean());
}
