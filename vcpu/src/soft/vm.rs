//! The software machine as a [`Vm`] with its [`Vcpu`].

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memory_model::{AddrRange, Gpa, Gva, Hpa, Hva, MemoryError, RamBlock};
use slot_manager::{
    DirtyLog, DirtyMethod, DirtyRing, KernelMemslots, SlotError, SlotExecutor, SlotLimits, SlotOp, SlotRecord,
};

use super::cpu::{Cpu, CpuError, Cpuid};
use super::kernel::SoftKernel;
use super::mmu::Mmu;
use super::options::SoftOptions;
use super::second_level::SoftMmu;
use super::verification::Verification;
use crate::witness::BY_GVA;
use crate::{
    Budget, Entry, Exit, FaultRecord, HostEvent, HostView, Kick, Limit, MappedPage, Regs, SecondLevelLeaf,
    SecondLevelTables, SystemRegs, Vcpu, VcpuError, Vm, Witness,
};

/// A VM without KVM: the slots are [`KernelMemslots`], the second level is `ept`'s, the frames are simulated.
/// Clones are handles to the same VM.
#[derive(Clone)]
pub struct SoftVm {
    kernel: Arc<Mutex<SoftKernel>>,
    cpuid: Cpuid,
    x2apic: bool,
}

impl SoftVm {
    /// A VM without memory, with a 4-level EPT.
    pub fn new() -> Result<Self, VcpuError> {
        Self::with(&SoftOptions::default())
    }

    /// A VM without memory, made like that.
    pub fn with(options: &SoftOptions) -> Result<Self, VcpuError> {
        let kernel = Arc::new(Mutex::new(SoftKernel::new(options)?));
        let mut cpuid = Cpuid::default();
        cpuid.set_vendor(options.vendor);
        Ok(Self { kernel, cpuid, x2apic: options.x2apic })
    }

    /// The same VM; the processors that this handle and its clones make have that CPUID (`KVM_SET_CPUID2`), and what of
    /// the APICs is in it. Guest-physical addresses stay as wide as the machine's, whatever it says.
    pub fn with_cpuid(self, cpuid: Cpuid) -> Self {
        Self { cpuid, ..self }
    }

    /// Verifies all second-level tables, and what the processors remember of them; while no vCPU runs.
    pub fn verify(&self) -> Result<Verification, ept::Error> {
        self.kernel().verify()
    }

    /// The kernel side, while no vCPU runs: a running one holds it until its next exit.
    pub fn kernel(&self) -> MutexGuard<'_, SoftKernel> {
        lock(&self.kernel)
    }
}

fn lock(kernel: &Mutex<SoftKernel>) -> MutexGuard<'_, SoftKernel> {
    kernel.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vm for SoftVm {
    fn slots(&self) -> Box<dyn SlotExecutor> {
        Box::new(SoftSlots(self.clone()))
    }

    fn create_vcpu(&self, _index: u32) -> Result<Box<dyn Vcpu>, VcpuError> {
        let mut cpu = Cpu::new(Regs::default(), SystemRegs::default());
        cpu.cpuid = self.cpuid.clone();
        let mut kernel = self.kernel();
        let index = kernel.create_vcpu()?;
        if kernel.irqchip.is_some() {
            cpu.cpuid.add_apic(index, self.x2apic);
        }
        let ring = kernel.memslots.dirty_ring(index).cloned();
        Ok(Box::new(SoftVcpu { cpu, vm: self.clone(), index, ring, kick: Kick::default() }))
    }

    /// The simulated host's: the frames are its own, and so are the rights.
    fn host_event(&self, block: &RamBlock, part: Range<u64>, event: HostEvent) -> Result<(), MemoryError> {
        let bytes = part.end.saturating_sub(part.start);
        let first = block.hva().checked_add(part.start);
        let Some(range) = first.and_then(|first| AddrRange::new(first, bytes.into())) else { return Ok(()) };
        self.kernel().host_event(|host, notifier| match event {
            HostEvent::Discard => host.discard(range, notifier),
            HostEvent::Migrate => {
                host.migrate(range, notifier);
                Ok(())
            }
            HostEvent::Protect(protection) => {
                host.protect(range, protection, notifier);
                Ok(())
            }
        })
    }

    fn has_irqchip(&self) -> bool {
        self.kernel().irqchip.is_some()
    }

    fn set_irq_line(&self, line: u8, high: bool) -> Result<(), VcpuError> {
        if let Some(irqchip) = &mut self.kernel().irqchip {
            irqchip.set_line(line, high);
        }
        Ok(())
    }
}

impl HostView for SoftVm {
    fn slot_hva(&self, gpa: Gpa) -> Witness<Hva> {
        let kernel = self.kernel();
        kernel.memslots.gfn_to_memslot(gpa).and_then(|slot| slot.hva_of(gpa)).into()
    }

    fn frame(&self, hva: Hva) -> Witness<Hpa> {
        self.kernel().host.frame_of(hva).into()
    }

    fn leaf(&self, gva: Gva, gpa: Gpa) -> Witness<SecondLevelLeaf> {
        self.kernel().leaf(gva, gpa).into()
    }

    fn is_shadow(&self) -> bool {
        matches!(self.kernel().mmu, SoftMmu::Shadow(_))
    }

    fn bypasses_tables(&self, _ring: u8) -> bool {
        false
    }

    fn violations(&self) -> Option<u64> {
        Some(self.kernel().mmu.stats().pf_taken)
    }

    fn mapped_pages(&self) -> Witness<Vec<MappedPage>> {
        match self.kernel().mapped_pages() {
            Some(pages) => Witness::Seen(pages),
            None => Witness::NotShown(BY_GVA.into()),
        }
    }

    fn record_faults(&self) {
        self.kernel().faults.start();
    }

    fn faults(&self) -> Witness<FaultRecord> {
        match self.kernel().faults.record() {
            Some(record) => Witness::Seen(record.clone()),
            None => Witness::NotShown("nobody has asked for a record of faults".into()),
        }
    }

    fn tables(&self) -> Witness<SecondLevelTables> {
        self.kernel().tables().into()
    }

    fn verification(&self) -> Witness<crate::Verification> {
        match self.verify() {
            Ok(found) => Witness::Seen(crate::Verification::Soft(found)),
            Err(error) => Witness::NotShown(error.to_string().into()),
        }
    }
}

/// The way to a [`SoftVm`]'s slots.
struct SoftSlots(SoftVm);

impl SlotExecutor for SoftSlots {
    fn limits(&self) -> SlotLimits {
        KernelMemslots::new().limits()
    }

    fn execute(&mut self, op: &SlotOp) -> Result<(), SlotError> {
        self.0.kernel().set_slot(op)
    }

    fn dirty_method(&self) -> DirtyMethod {
        self.0.kernel().memslots.dirty_method()
    }

    fn with_log(&mut self, act: &mut dyn FnMut(&mut dyn DirtyLog)) {
        self.0.kernel().with_log(act);
    }
}

/// Instructions between two looks at the kick.
const SLICE: u64 = 4096;

struct SoftVcpu {
    cpu: Cpu,
    vm: SoftVm,
    /// Its place among the VM's vCPUs, as the kernel counts them.
    index: u32,
    ring: Option<Arc<DirtyRing>>,
    kick: Kick,
}

impl SoftVcpu {
    /// Runs the processor for a while. The kernel is the vCPU's until it is back.
    fn step(&mut self, entry: &Entry, budget: &Budget) -> Result<Exit, VcpuError> {
        let kernel = &mut *self.vm.kernel();
        // Nobody is on the way through tables that were freed.
        kernel.host.quiesce();
        let mut mmu = Mmu { kernel, vcpu: self.index };
        let exit = self.cpu.run(&mut mmu, entry, budget).map_err(|error| wrong_answer(error, entry));
        if self.ring.is_some() {
            kernel.sync_dirty_log(Some(self.index));
        }
        exit
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, entry: Entry, budget: &Budget) -> Result<Exit, VcpuError> {
        // The exit before is answered first of all, as KVM does: what comes instead of a run has not lost it.
        let mut exit = self.step(&entry, &budget.instructions(0))?;
        let mut left = budget.instructions;
        while exit == Exit::BudgetExceeded(Limit::Instructions) && left > 0 {
            if self.kick.take() {
                return Ok(Exit::Kicked);
            }
            if self.ring.as_ref().is_some_and(|ring| ring.is_soft_full()) {
                return Ok(Exit::DirtyRingFull);
            }
            // One instruction writes to fewer pages than a ring keeps back.
            let slice = left.min(if self.ring.is_some() { 1 } else { SLICE });
            exit = self.step(&Entry::Resume, &budget.instructions(slice))?;
            left -= slice;
        }
        Ok(exit)
    }

    fn regs(&mut self) -> Result<Regs, VcpuError> {
        Ok(self.cpu.regs)
    }

    fn set_regs(&mut self, regs: &Regs) -> Result<(), VcpuError> {
        self.cpu.regs = *regs;
        Ok(())
    }

    fn system_regs(&mut self) -> Result<SystemRegs, VcpuError> {
        Ok(self.cpu.system)
    }

    fn set_system_regs(&mut self, system: &SystemRegs) -> Result<(), VcpuError> {
        self.cpu.system = *system;
        let mut kernel = self.vm.kernel();
        kernel.vcpu(self.index).registers_changed();
        if let Some(irqchip) = &mut kernel.irqchip {
            irqchip.of(self.index as usize, 0).set_tpr((system.cr8 as u8) << 4);
        }
        Ok(())
    }

    fn kick(&self) -> Kick {
        self.kick.clone()
    }
}

fn wrong_answer(error: CpuError, entry: &Entry) -> VcpuError {
    let given = match entry {
        Entry::Resume => 0,
        Entry::Data(bytes) => bytes.len(),
    };
    match error {
        CpuError::UnexpectedData => VcpuError::AnswerUnexpected { given },
        CpuError::WrongLength { expected, .. } if *entry == Entry::Resume => {
            VcpuError::AnswerMissing { needed: expected }
        }
        CpuError::WrongLength { expected, .. } => VcpuError::AnswerLength { needed: expected, given },
    }
}
