//! A VM of `/dev/kvm`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use kvm_bindings::CpuId;
use kvm_ioctls::VmFd;
use memory_model::{Gpa, Gva, Hpa, Hva};
use slot_manager::{KvmDoorbells, KvmRings, KvmSlots, SlotExecutor};

use super::coalesced::CoalescedWrites;
use super::{KvmVcpu, host};
use crate::soft::Verification;
use crate::{HostView, SecondLevelLeaf, Vcpu, VcpuError, Vm, Witness, pagemap};

/// A virtual machine of KVM's, without an interrupt controller in the kernel: `HLT` comes back as an exit.
///
/// Dirty rings are chosen by its slots
/// ([`SlotManager::set_dirty_method`](slot_manager::SlotManager::set_dirty_method)), before the first vCPU is made.
#[derive(Debug)]
pub struct KvmVm {
    fd: Arc<VmFd>,
    cpuid: &'static CpuId,
    rings: KvmRings,
    coalesced: CoalescedWrites,
}

impl KvmVm {
    /// Opens `/dev/kvm` and makes a VM. Where KVM cannot be used, the error says what to do about it.
    pub fn new() -> Result<Self, VcpuError> {
        let kvm = host::open()?;
        let cpuid = host::supported_cpuid(&kvm)?;
        let fd = kvm.create_vm().map_err(VcpuError::host("KVM_CREATE_VM"))?;
        let (rings, coalesced) = Default::default();
        Ok(Self { fd: Arc::new(fd), cpuid, rings, coalesced })
    }

    /// Keeps this VM's ioeventfds and coalesced zones in step with the memory address space that it listens to.
    /// What the kernel coalesces comes out as the exits it would have been, before the next one.
    pub fn memory_doorbells(&self) -> KvmDoorbells {
        KvmDoorbells::memory(self.fd.clone())
    }

    /// The same for the port address space.
    pub fn port_doorbells(&self) -> KvmDoorbells {
        KvmDoorbells::ports(self.fd.clone())
    }
}

impl AsRawFd for KvmVm {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Vm for KvmVm {
    fn slots(&self) -> Box<dyn SlotExecutor> {
        Box::new(KvmSlots::new(self.fd.clone()).with_rings(self.rings.clone()))
    }

    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, VcpuError> {
        let vcpu = KvmVcpu::new(&self.fd, index, self.cpuid, self.coalesced.clone())?;
        self.rings.add_vcpu(vcpu.fd())?;
        Ok(Box::new(vcpu))
    }
}

const NO_TABLES: &str = "KVM has no call that reads its page tables";

impl HostView for KvmVm {
    fn slot_hva(&self, _gpa: Gpa) -> Witness<Hva> {
        Witness::NotShown("KVM has no call that reads its memory slots".into())
    }

    fn frame(&self, hva: Hva) -> Witness<Hpa> {
        pagemap::frame(hva)
    }

    fn leaf(&self, _gva: Gva, _gpa: Gpa) -> Witness<SecondLevelLeaf> {
        Witness::NotShown(NO_TABLES.into())
    }

    fn verification(&self) -> Witness<Verification> {
        Witness::NotShown(NO_TABLES.into())
    }

    fn violations(&self) -> Option<u64> {
        None
    }
}
