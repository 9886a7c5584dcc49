//! A VM of `/dev/kvm`.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ept::live::{KvmModule, KvmStats};
use kvm_bindings::{CpuId, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::VmFd;
use memory_model::{Gpa, Gva, Hpa, Hva};
use slot_manager::{KvmDoorbells, KvmRings, KvmSlots, SlotExecutor};

use super::coalesced::CoalescedWrites;
use super::live::{Live, Still};
use super::{KvmVcpu, host};
use crate::{
    FaultRecord, HostView, MappedPage, SecondLevelLeaf, SecondLevelTables, Vcpu, VcpuError, Verification, Vm,
    Witness, pagemap,
};

/// A virtual machine of KVM's. Without interrupt controllers in the kernel `HLT` comes back as an exit; with them
/// ([`KvmVm::with_irqchip`]) a vCPU sleeps until it is interrupted, or its budget ends.
///
/// Dirty rings are chosen by its slots
/// ([`SlotManager::set_dirty_method`](slot_manager::SlotManager::set_dirty_method)), before the first vCPU is made.
#[derive(Debug)]
pub struct KvmVm {
    fd: Arc<VmFd>,
    cpuid: &'static CpuId,
    rings: KvmRings,
    coalesced: CoalescedWrites,
    pub(super) live: Live,
    vcpu_stats: Mutex<Vec<Option<KvmStats>>>,
    has_irqchip: bool,
}

impl KvmVm {
    /// Opens `/dev/kvm` and makes a VM. Where KVM cannot be used, the error says what to do about it.
    pub fn new() -> Result<Self, VcpuError> {
        let kvm = host::open()?;
        let cpuid = host::supported_cpuid(&kvm)?;
        let fd = kvm.create_vm().map_err(VcpuError::host("KVM_CREATE_VM"))?;
        let (rings, coalesced, live, vcpu_stats) = Default::default();
        Ok(Self { fd: Arc::new(fd), cpuid, rings, coalesced, live, vcpu_stats, has_irqchip: false })
    }

    /// The same with the kernel's interrupt controllers and timers.
    pub fn with_irqchip() -> Result<Self, VcpuError> {
        let vm = Self::new()?;
        vm.fd.create_irq_chip().map_err(VcpuError::host("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.fd.create_pit2(pit).map_err(VcpuError::host("KVM_CREATE_PIT2"))?;
        Ok(Self { has_irqchip: true, ..vm })
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
        let mut stats = self.vcpu_stats.lock().unwrap_or_else(PoisonError::into_inner);
        // A kernel without them tells no violations; all else is as it would be.
        stats.push(KvmStats::of(vcpu.fd()).ok());
        Ok(Box::new(vcpu))
    }

    fn has_irqchip(&self) -> bool {
        self.has_irqchip
    }

    fn set_irq_line(&self, line: u8, high: bool) -> Result<(), VcpuError> {
        if self.has_irqchip {
            self.fd.set_irq_line(line.into(), high).map_err(VcpuError::host("KVM_IRQ_LINE"))?;
        }
        Ok(())
    }
}

impl HostView for KvmVm {
    fn slot_hva(&self, gpa: Gpa) -> Witness<Hva> {
        self.live.slot_hva(self, gpa)
    }

    fn frame(&self, hva: Hva) -> Witness<Hpa> {
        pagemap::frame(hva)
    }

    fn leaf(&self, gva: Gva, gpa: Gpa) -> Witness<SecondLevelLeaf> {
        self.live.leaf(self, gva, gpa)
    }

    fn is_shadow(&self) -> bool {
        module().is_some_and(|(_, tdp)| tdp == Some(false))
    }

    /// `kvm_pvm` interprets ring 0, by the guest's tables and the slots.
    fn bypasses_tables(&self, ring: u8) -> bool {
        ring == 0 && module().is_some_and(|(module, _)| module == KvmModule::Pvm)
    }

    fn mapped_pages(&self) -> Witness<Vec<MappedPage>> {
        self.live.mapped_pages(self)
    }

    fn tables(&self) -> Witness<SecondLevelTables> {
        self.live.second_level(self)
    }

    fn verification(&self) -> Witness<Verification> {
        self.live.verification(self)
    }

    /// What KVM counts of its vCPUs.
    fn violations(&self) -> Option<u64> {
        let stats = self.vcpu_stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.iter().map(|stats| stats.as_ref()?.get("pf_taken").ok()?).sum()
    }

    fn record(&self) -> Witness<()> {
        self.live.record()
    }

    /// Why they cannot be recorded, [`faults`](HostView::faults) tells.
    fn record_faults(&self) {
        let _ = self.live.record();
    }

    fn faults(&self) -> Witness<FaultRecord> {
        self.live.faults()
    }

    fn still(&self) -> Option<Box<dyn HostView + '_>> {
        Some(Box::new(Still::of(self)?))
    }
}

/// The module of this host, and whether it has a second level. Asked once: a page's check must not read files.
fn module() -> Option<(KvmModule, Option<bool>)> {
    static MODULE: OnceLock<Option<(KvmModule, Option<bool>)>> = OnceLock::new();
    *MODULE.get_or_init(KvmModule::of_this_host)
}
