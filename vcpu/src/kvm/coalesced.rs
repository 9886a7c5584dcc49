//! Coalesced MMIO: writes to a device that the kernel keeps in a ring until the next exit.
//!
//! A VM has one ring, which any of its vCPUs shows. Its writes happened before whatever exit comes next, so each
//! vCPU hands them out first.
#![expect(unsafe_code, reason = "the ring is shared with the kernel")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{kvm_coalesced_mmio, kvm_coalesced_mmio_ring};
use kvm_ioctls::{VcpuFd, VmFd};
use memory_model::{Gpa, PageSize};
use slot_manager::Capability;

use crate::{Exit, MmioData, VcpuError};

const PAGE: usize = PageSize::Size4K.bytes() as usize;
/// `KVM_COALESCED_MMIO_MAX`.
const ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

/// The ring of a VM; none before it has a vCPU, and on a kernel that has none. Clones are handles to the same.
#[derive(Clone, Debug, Default)]
pub(super) struct CoalescedWrites {
    ring: Arc<Mutex<Option<Ring>>>,
}

impl CoalescedWrites {
    /// Maps the ring, which `vcpu` shows, if nobody has done so.
    pub(super) fn map(&self, vm: &VmFd, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        let page = Capability::COALESCED_MMIO.probe(vm);
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.is_none() && page != 0 {
            *ring = Some(Ring::map(vcpu, page).map_err(VcpuError::host("mmap of the coalesced MMIO ring"))?);
        }
        Ok(())
    }

    /// Takes out all writes, as exits, in their order.
    pub(super) fn drain(&self, into: &mut VecDeque<Exit>) {
        // Held over all of it, so that two vCPUs do not get the same write, or one before an older one.
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ring) = &mut *ring {
            into.extend(std::iter::from_fn(|| ring.take()).map(exit));
        }
    }
}

fn exit(write: kvm_coalesced_mmio) -> Exit {
    let data = write.data.get(..write.len as usize).and_then(MmioData::new);
    let data = data.expect("a coalesced write has 1 to 8 bytes");
    // SAFETY: both members are the same number.
    match unsafe { write.__bindgen_anon_1.pio } {
        0 => Exit::MmioWrite { gpa: Gpa(write.phys_addr), data },
        _ => {
            let port = u16::try_from(write.phys_addr).expect("a port has 16 bits");
            Exit::IoOut { port, size: write.len as u8, data: data.as_slice().to_vec() }
        }
    }
}

#[derive(Debug)]
struct Ring(NonNull<kvm_coalesced_mmio_ring>);

// SAFETY: the mapping belongs to the process; whoever has the ring is its only reader.
unsafe impl Send for Ring {}

impl Ring {
    /// Maps the ring, which is that page of a vCPU.
    fn map(vcpu: &VcpuFd, page: u32) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (fd, offset) = (vcpu.as_raw_fd(), page as usize * PAGE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), PAGE, access, libc::MAP_SHARED, fd, offset as libc::off_t) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast()).map(Self).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Takes the oldest write out.
    fn take(&mut self) -> Option<kvm_coalesced_mmio> {
        let ring = self.0.as_ptr();
        // SAFETY: both numbers are mapped as long as `self` lives; the kernel and we access them atomically.
        let (first, last) = unsafe {
            (AtomicU32::from_ptr(&raw mut (*ring).first), AtomicU32::from_ptr(&raw mut (*ring).last))
        };
        let index = first.load(Ordering::Relaxed);
        if index == last.load(Ordering::Acquire) {
            return None;
        }
        assert!(index < ENTRIES, "only we write the first index");
        // SAFETY: the entries lie behind the header; by the indexes the kernel has filled this one, and leaves it
        // alone until we have moved on.
        let write = unsafe { ring.add(1).cast::<kvm_coalesced_mmio>().add(index as usize).read_volatile() };
        first.store((index + 1) % ENTRIES, Ordering::Release);
        Some(write)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: mapped in `map` with this length; no pointer into it outlives `self`.
        unsafe { libc::munmap(self.0.as_ptr().cast(), PAGE) };
    }
}
