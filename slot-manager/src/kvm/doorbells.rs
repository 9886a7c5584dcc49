//! Writes that need no exit of their own: ioeventfds, and coalesced MMIO.

use std::sync::Arc;

use kvm_bindings::{
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio,
};
use kvm_ioctls::{IoEventAddress, VmFd};
use memory_model::{AddrRange, FlatEventfd, Gpa, MemoryListener};

use super::{Capability, ext};
use crate::{Errno, SlotError};

/// Keeps a VM's ioeventfds and coalesced zones in step with an address space: that of memory, or that of
/// ports.
///
/// A listener is told of them when they cannot be refused any more, so what the kernel refuses is kept for
/// [`KvmDoorbells::take_failures`]; those writes leave the guest as ordinary exits.
pub struct KvmDoorbells {
    vm: Arc<VmFd>,
    ports: bool,
    failures: Vec<SlotError>,
}

impl KvmDoorbells {
    /// Those of the memory address space.
    pub fn memory(vm: Arc<VmFd>) -> Self {
        Self { vm, ports: false, failures: Vec::new() }
    }

    /// Those of the port address space.
    pub fn ports(vm: Arc<VmFd>) -> Self {
        Self { ports: true, ..Self::memory(vm) }
    }

    /// What the kernel has refused since the last call.
    pub fn take_failures(&mut self) -> Vec<SlotError> {
        std::mem::take(&mut self.failures)
    }

    fn set_eventfd(&self, eventfd: &FlatEventfd, remove: bool) -> Result<(), SlotError> {
        Capability::IOEVENTFD.require(&self.vm)?;
        if eventfd.size == 0 {
            Capability::IOEVENTFD_ANY_LENGTH.require(&self.vm)?;
        }
        let flag = |set: bool, number: u32| u32::from(set) << number;
        let argument = kvm_ioeventfd {
            datamatch: eventfd.data.unwrap_or(0),
            addr: eventfd.range.first().0,
            len: eventfd.size.into(),
            fd: eventfd.fd,
            flags: flag(eventfd.data.is_some(), kvm_ioeventfd_flag_nr_datamatch)
                | flag(self.ports, kvm_ioeventfd_flag_nr_pio)
                | flag(remove, kvm_ioeventfd_flag_nr_deassign),
            ..Default::default()
        };
        ext::ioeventfd(&self.vm, &argument).map_err(|errno| SlotError::Eventfd {
            eventfd: *eventfd,
            remove,
            errno,
        })
    }

    fn set_coalesced(&self, zone: AddrRange<Gpa>, remove: bool) -> Result<(), SlotError> {
        Capability::COALESCED_MMIO.require(&self.vm)?;
        let refused = |errno| SlotError::Coalesced { zone, remove, errno };
        let size = u32::try_from(zone.bytes()).map_err(|_| refused(Errno::EINVAL))?;
        let first = zone.first().0;
        let address = if self.ports { IoEventAddress::Pio(first) } else { IoEventAddress::Mmio(first) };
        let answer = match remove {
            false => self.vm.register_coalesced_mmio(address, size),
            true => self.vm.unregister_coalesced_mmio(address, size),
        };
        answer.map_err(|error| refused(Errno(error.errno())))
    }

    fn note(&mut self, answer: Result<(), SlotError>) {
        self.failures.extend(answer.err());
    }
}

impl MemoryListener for KvmDoorbells {
    fn name(&self) -> &str {
        if self.ports { "port doorbells" } else { "doorbells" }
    }

    fn wants_nops(&self) -> bool {
        false
    }

    fn eventfd_add(&mut self, eventfd: &FlatEventfd) {
        self.note(self.set_eventfd(eventfd, false));
    }

    fn eventfd_del(&mut self, eventfd: &FlatEventfd) {
        self.note(self.set_eventfd(eventfd, true));
    }

    fn coalesced_add(&mut self, range: AddrRange<Gpa>) {
        self.note(self.set_coalesced(range, false));
    }

    fn coalesced_del(&mut self, range: AddrRange<Gpa>) {
        self.note(self.set_coalesced(range, true));
    }
}
