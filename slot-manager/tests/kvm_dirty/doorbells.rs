//! Eventfds and coalesced MMIO reach the kernel, and leave it again.

use std::sync::{Arc, Mutex};

use memory_model::{AddrRange, AddressSpace, FlatEventfd, Gpa, MemoryListener, RegionTree};
use slot_manager::{KvmDoorbells, SlotError};

use crate::guest::vm;

fn bell(fd: i32, size: u8, data: Option<u64>) -> FlatEventfd {
    let range = AddrRange::new(Gpa(0xfe00_0000), u128::from(size.max(1))).unwrap();
    FlatEventfd { range, size, data, fd }
}

fn eventfd() -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    #[expect(unsafe_code, reason = "eventfd has no safe name here")]
    // SAFETY: takes no memory, and the descriptor is new.
    unsafe {
        let fd = libc::eventfd(0, 0);
        assert!(fd >= 0);
        std::os::fd::OwnedFd::from_raw_fd(fd)
    }
}

#[test]
fn an_eventfd_of_any_width_comes_and_goes() {
    let Some(vm) = vm("ioeventfd") else { return };
    let fd = eventfd();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&fd);
    for mut bells in [KvmDoorbells::memory(vm.clone()), KvmDoorbells::ports(vm.clone())] {
        for size in [0, 1, 2, 4, 8] {
            for data in [None, Some(7)].into_iter().filter(|data| size != 0 || data.is_none()) {
                let bell = bell(fd, size, data);
                bells.eventfd_add(&bell);
                assert!(bells.take_failures().is_empty(), "{bell:?}");
                // It is there: the kernel does not take it twice, and gives it up once.
                bells.eventfd_add(&bell);
                let failures = bells.take_failures();
                assert!(
                    matches!(failures[..], [SlotError::Eventfd { remove: false, .. }]),
                    "{bell:?} {failures:?}"
                );
                bells.eventfd_del(&bell);
                assert!(bells.take_failures().is_empty(), "{bell:?}");
                bells.eventfd_del(&bell);
                let text = bells.take_failures()[0].to_string();
                assert!(text.starts_with("cannot remove an ioeventfd at 0xfe000000-"), "{text}");
            }
        }
    }
}

#[test]
fn coalesced_zones_of_a_device_follow_it() {
    let Some(vm) = vm("coalesced MMIO") else { return };
    let bells = Arc::new(Mutex::new(KvmDoorbells::memory(vm)));
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    space.register(bells.clone()).unwrap();
    let zone = AddrRange::new(Gpa(0xfe00_0000), 0x100).unwrap();
    let mut bells = bells.lock().unwrap();
    bells.coalesced_add(zone);
    bells.coalesced_del(zone);
    // The kernel takes no zone of 4 GiB: its size has 32 bits.
    bells.coalesced_add(AddrRange::new(Gpa(0), 1 << 32).unwrap());
    let failures = bells.take_failures();
    let text: Vec<_> = failures.iter().map(ToString::to_string).collect();
    assert_eq!(text, ["cannot add coalesced MMIO at 0x0-0xffffffff: EINVAL"]);
}
