//! A slot that the kernel fills from a guest_memfd, which this process has mapped too (`GUEST_MEMFD_FLAG_MMAP`).
#![expect(unsafe_code, reason = "kvm-ioctls hands no VM out")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{Backing, Gpa, PageSize, RamBlock, RamOptions};
use slot_manager::{Slot, SlotFlags, SlotOp};
use vcpu::{Entry, Exit, KvmVm};

use crate::guest::{Guest, slot};
use crate::live::{frame, pagemap};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Live, Need::GuestMemfd];
    leaves_have_the_frames_of_the_guest_memfd,
);

const PAGE: u64 = PageSize::Size4K.bytes();
const PAGES: u64 = 64;
const BYTES: u64 = PAGES * PAGE;
const HERE: u64 = 0x80_0000;

/// Adds its own address to the first word of each page of the slot, and comes out.
fn add(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut next = a.create_label();
    a.mov(esi, HERE as u32)?;
    a.set_label(&mut next)?;
    a.add(qword_ptr(rsi), rsi)?;
    a.add(esi, PAGE as u32)?;
    a.cmp(esi, (HERE + BYTES) as u32)?;
    a.jb(next)?;
    a.out(0xf4, al)
}

/// A guest_memfd that can be mapped, and is shared from the start.
pub fn shared_memfd(vm: &KvmVm) -> io::Result<OwnedFd> {
    // `struct kvm_create_guest_memfd`: size, flags (MMAP, INIT_SHARED), six reserved words.
    let argument: [u64; 8] = [BYTES, 1 << 0 | 1 << 1, 0, 0, 0, 0, 0, 0];
    const KVM_CREATE_GUEST_MEMFD: libc::Ioctl = (3 << 30 | 64 << 16 | 0xae << 8 | 0xd4) as libc::Ioctl;
    // SAFETY: the argument has the size that the request names, and is only read.
    match unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CREATE_GUEST_MEMFD, argument.as_ptr()) } {
        // SAFETY: the kernel has just made it for us.
        fd if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn leaves_have_the_frames_of_the_guest_memfd() {
    let mut guest = Guest::ring3(add);
    let memfd = shared_memfd(&guest.vm).unwrap();
    let backing = Backing::File { file: memfd.try_clone().unwrap(), offset: 0 };
    let options = RamOptions { backing, shared: true, guest_memfd: Some(memfd), ..RamOptions::default() };
    let block = RamBlock::create("block", BYTES, options).unwrap();
    for page in (0..BYTES).step_by(PAGE as usize) {
        block.write(page, &1u64.to_le_bytes()).unwrap();
    }
    let slot = Slot { flags: SlotFlags::GUEST_MEMFD, ..slot(1, HERE, &block) };
    guest.slots.execute(&SlotOp::Create(slot.clone())).unwrap();
    assert_eq!(guest.run(Entry::Resume), Exit::IoOut { port: 0xf4, size: 1, data: vec![0] });
    let vm = guest.live();
    let tables = vm.tables().unwrap();
    for page in (0..BYTES).step_by(PAGE as usize) {
        assert_eq!(block.load_u64(page).unwrap(), HERE + page + 1);
        let leaf = tables.leaves().find(|leaf| leaf.gpa == Gpa(HERE + page)).expect("a leaf");
        assert_eq!(Some(leaf.hpa.raw()), frame(&block, page), "{page:#x}");
    }
    let report = tables.check(&pagemap()).unwrap();
    assert!(report.is_clean(), "{report}");
    guest.slots.execute(&SlotOp::Delete(slot)).unwrap();
    assert!(vm.tables().unwrap().leaves().all(|leaf| leaf.gpa < Gpa(HERE)));
}
