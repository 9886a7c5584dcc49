//! Writes that need no exit of their own: coalesced ones, and those that ring an eventfd.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iced_x86::code_asm::*;
use memory_model::{
    AddressSpace, Eventfd, Gpa, MemTxAttrs, MemTxError, MemoryError, MmioOps, RegionId, RegionTree,
};
use vcpu::{Budget, Entry, Exit, Limit, MmioData};

use crate::guest::{DATA, Guest, NO_SLOT};

use crate::need::{Need, Tests};

/// The tests, and what they need.
pub const TESTS: Tests = tests!(
    &[Need::Kvm];
    coalesced_writes_come_in_order_before_the_next_exit_and_did_not_stop_the_guest,
    more_coalesced_writes_than_the_kernel_keeps_come_in_order,
    a_budget_that_ends_brings_the_coalesced_writes_first,
    a_write_rings_its_eventfd_and_no_other_and_does_not_exit,
);

const PORT: u64 = 0x500;

struct NoDevice;

impl MmioOps for NoDevice {
    fn read(&self, _offset: u64, _size: u8, _attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(0)
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64, _attrs: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
}

/// An address space with a page of a device at [`NO_SLOT`], and one of ports with a device at [`PORT`], whose bells
/// the kernel has. They go with the answer.
fn devices(
    guest: &Guest,
    set_up: impl Fn(&mut RegionTree, RegionId) -> Result<(), MemoryError>,
) -> [AddressSpace; 2] {
    let memory = (1 << 64, NO_SLOT, guest.vm.memory_doorbells());
    let ports = (1 << 16, PORT, guest.vm.port_doorbells());
    [memory, ports].map(|(size, at, bells)| {
        let mut tree = RegionTree::new("system", size).unwrap();
        let device = tree.mmio("device", 0x100, Arc::new(NoDevice)).unwrap();
        tree.add(tree.root(), at, device).unwrap();
        set_up(&mut tree, device).unwrap();
        let space = AddressSpace::new("devices", tree).unwrap();
        let bells = Arc::new(Mutex::new(bells));
        space.register(bells.clone()).unwrap();
        let failures = bells.lock().unwrap().take_failures();
        assert!(failures.is_empty(), "{failures:?}");
        space
    })
}

fn coalesced(tree: &mut RegionTree, device: RegionId) -> Result<(), MemoryError> {
    tree.add_coalesced(device, 0, 0x80)
}

fn mmio_write(gpa: u64, data: &[u8]) -> Exit {
    Exit::MmioWrite { gpa: Gpa(gpa), data: MmioData::new(data).unwrap() }
}

fn done() -> Exit {
    Exit::IoOut { port: 0xf4, size: 1, data: vec![7] }
}

fn coalesced_writes_come_in_order_before_the_next_exit_and_did_not_stop_the_guest() {
    let mut guest = Guest::ring3(|a| {
        a.mov(rbx, NO_SLOT)?;
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(byte_ptr(rbx), al)?;
        a.mov(word_ptr(rbx + 8), ax)?;
        a.mov(edx, PORT as u32)?;
        a.out(dx, ax)?;
        a.mov(qword_ptr(rbx + 16), rax)?;
        a.mov(qword_ptr(DATA), 1)?;
        // Outside the zone.
        a.mov(dword_ptr(rbx + 0x80), eax)?;
        a.mov(dword_ptr(rbx + 4), eax)?;
        a.mov(al, 7)?;
        a.out(0xf4, al)
    });
    let _devices = devices(&guest, coalesced);
    assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT, &[0x88]));
    assert_eq!(guest.ram.load_u64(DATA).unwrap(), 1, "the guest went on");
    assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT + 8, &[0x88, 0x77]));
    assert_eq!(guest.run(Entry::Resume), Exit::IoOut { port: PORT as u16, size: 2, data: vec![0x88, 0x77] });
    let long = mmio_write(NO_SLOT + 16, &0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(guest.run(Entry::Resume), long);
    assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT + 0x80, &[0x88, 0x77, 0x66, 0x55]));
    assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT + 4, &[0x88, 0x77, 0x66, 0x55]));
    assert_eq!(guest.run(Entry::Resume), done());
}

/// The kernel's ring has 169 of them; with a full ring a write exits as any other.
fn more_coalesced_writes_than_the_kernel_keeps_come_in_order() {
    let mut guest = Guest::ring3(|a| {
        let mut again = a.create_label();
        a.mov(rbx, NO_SLOT)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rbx), eax)?;
        a.inc(eax)?;
        a.cmp(eax, 1000)?;
        a.jne(again)?;
        a.mov(al, 7)?;
        a.out(0xf4, al)
    });
    let _devices = devices(&guest, coalesced);
    for value in 0..1000u32 {
        assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT, &value.to_le_bytes()));
    }
    assert_eq!(guest.run(Entry::Resume), done());
}

fn a_budget_that_ends_brings_the_coalesced_writes_first() {
    let mut guest = Guest::ring3(|a| {
        let mut here = a.create_label();
        a.mov(rbx, NO_SLOT)?;
        a.mov(byte_ptr(rbx), 5)?;
        a.set_label(&mut here)?;
        a.jmp(here)
    });
    let _devices = devices(&guest, coalesced);
    let mut run = || guest.vcpu.run(Entry::Resume, &Budget::time(Duration::from_millis(50))).unwrap();
    assert_eq!(run(), mmio_write(NO_SLOT, &[5]));
    assert_eq!(run(), Exit::BudgetExceeded(Limit::WallClock));
}

fn eventfd() -> File {
    #[expect(unsafe_code, reason = "eventfd has no safe name here")]
    // SAFETY: takes no memory, and the descriptor is new.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_NONBLOCK);
        assert!(fd >= 0);
        File::from_raw_fd(fd)
    }
}

/// How often it was rung since the last call.
fn rung(mut eventfd: &File) -> u64 {
    let mut count = [0; 8];
    eventfd.read_exact(&mut count).map_or(0, |()| u64::from_ne_bytes(count))
}

fn a_write_rings_its_eventfd_and_no_other_and_does_not_exit() {
    let mut guest = Guest::ring3(|a| {
        a.mov(rbx, NO_SLOT)?;
        a.mov(edx, PORT as u32)?;
        for value in [1, 2, 1, 1] {
            a.mov(eax, value)?;
            // The bell is at 4, four bytes wide, and wants a 1.
            a.mov(dword_ptr(rbx + 4), eax)?;
            a.mov(dword_ptr(rbx), eax)?;
            a.add(edx, 4)?;
            a.out(dx, eax)?;
            a.sub(edx, 4)?;
        }
        a.mov(al, 7)?;
        a.out(0xf4, al)
    });
    let (memory, port) = (eventfd(), eventfd());
    let rings = [memory.as_raw_fd(), port.as_raw_fd()];
    // The first tree is that of memory.
    let next = std::cell::Cell::new(0);
    let _devices = devices(&guest, |tree, device| {
        let fd = rings[next.replace(1)];
        tree.add_eventfd(device, Eventfd { offset: 4, size: 4, data: Some(1), fd })
    });
    for value in [1u32, 2, 1, 1] {
        let data = value.to_le_bytes();
        if value == 2 {
            assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT + 4, &data));
        }
        assert_eq!(guest.run(Entry::Resume), mmio_write(NO_SLOT, &data));
        if value == 2 {
            let port = PORT as u16 + 4;
            assert_eq!(guest.run(Entry::Resume), Exit::IoOut { port, size: 4, data: data.to_vec() });
        }
    }
    assert_eq!(guest.run(Entry::Resume), done());
    assert_eq!((rung(&memory), rung(&port)), (3, 3));
    assert_eq!((rung(&memory), rung(&port)), (0, 0));
}
