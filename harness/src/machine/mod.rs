//! A machine for one guest: manifest -> address space -> slots -> VM -> vCPUs; then the run.

mod load;
mod regions;
mod turns;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ept::{MaxPhyAddr, Paging, Processor};
use guest_tests::{BootSpec, DirtyLogSpec, Image, MmioSpec};
use memory_model::{AddressSpace, FlatView, RegionId, RegionTree};
use slot_manager::{DirtyMethod, SlotExecutor, SlotManager};
use vcpu::{Budget, Exit, Gpr, HostView, Limit, Regs, SystemRegs, Vcpu, Vm, rflags};

use self::turns::Turns;
use crate::HarnessError;
use crate::chain::{Chain, Observer};
use crate::devices::{Devices, pc};
use crate::exits::Exits;
use crate::judge::Judge;
use crate::steps::Done;

/// The slots of a machine, as its address space's listener keeps them.
pub type Slots = SlotManager<Box<dyn SlotExecutor>>;

/// The size of a dirty ring.
const RING_BYTES: u32 = 64 << 10;
/// Of the stack of each processor that starts in long mode.
const STACK_BYTES: u64 = 16 << 10;

/// How a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ending {
    /// The guest wrote this code to the exit port.
    Reported(u8),
    /// The guest halted without a report.
    Halted,
    /// The budget ran out.
    Timeout(Limit),
    /// The guest cannot go on.
    Crashed(Exit),
}

/// What a run left behind.
#[derive(Clone, Debug)]
pub struct Run {
    /// How it ended.
    pub ending: Ending,
    /// The vCPU that it ended on.
    pub vcpu: usize,
    /// Its registers at the end.
    pub regs: Regs,
    /// What the guest wrote to its console.
    pub console: String,
    /// The MMIO accesses the host saw.
    pub mmio: Vec<MmioSpec>,
    /// Accesses beyond those kept in `mmio`.
    pub mmio_unkept: u64,
    /// How often a vCPU left with a memory fault.
    pub memory_faults: u64,
    /// The chains of the pages that were looked at while it ran.
    pub chains: Vec<Chain>,
    /// What it came back for.
    pub exits: Exits,
    /// From the first instruction to the last exit.
    pub elapsed: Duration,
    /// What was found while it ran.
    pub(crate) found: Judge,
}

/// A guest with all it needs to run, on one VM.
pub struct Machine {
    // Dropped in this order: the vCPUs, the VM, and only then the memory. A VM that lives while its memory is unmapped
    // makes the kernel take every page out of its tables one by one.
    vcpus: Vec<Box<dyn Vcpu>>,
    pub(crate) vm: Box<dyn Vm>,
    slots: Arc<Mutex<Slots>>,
    pub(crate) space: AddressSpace,
    pub(crate) regions: BTreeMap<String, RegionId>,
    pub(crate) image: Image,
    pub(crate) done: Done,
    records: bool,
    /// How many times as long turns and ticks take, where time measures them.
    pace: u32,
}

impl Machine {
    /// Puts `image` into memory on an empty `vm`, ready to run.
    pub fn build(image: Image, vm: Box<dyn Vm>) -> Result<Self, HarnessError> {
        let executor = vm.slots();
        Self::build_with_slots(image, vm, executor)
    }

    /// The same, with another way to the slots: one that records them, or breaks one.
    pub fn build_with_slots(
        image: Image,
        vm: Box<dyn Vm>,
        executor: Box<dyn SlotExecutor>,
    ) -> Result<Self, HarnessError> {
        let manifest = image.manifest();
        let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64)?)?;
        let regions = space.update(|tree| {
            if image.boot() != BootSpec::Long {
                pc::add_devices(tree)?;
            }
            regions::add(tree, manifest)
        })?;
        let mut slots = SlotManager::new(executor);
        let dirty_method = dirty_method(manifest.machine.dirty_log);
        slots.set_dirty_method(dirty_method).map_err(HarnessError::DirtyMethod)?;
        let slots = Arc::new(Mutex::new(slots));
        space.register(slots.clone())?;
        let view = space.view();
        load::program(&image, &view)?;
        let (regs, system) = load::boot(&image, &view)?;
        let vcpus = (0..manifest.machine.vcpus).map(|index| vm.create_vcpu(index));
        let mut vcpus: Vec<_> = vcpus.collect::<Result<_, _>>()?;
        // Those of a PC wait to be started by the first.
        let starting = if image.boot() == BootSpec::Long { vcpus.len() } else { 1 };
        for (index, vcpu) in (0..).zip(&mut vcpus[..starting]) {
            let mut regs = regs;
            if index > 0 {
                regs[Gpr::Rdi] = index;
                regs[Gpr::Rsp] -= index * STACK_BYTES;
            }
            vcpu.set_system_regs(&system)?;
            vcpu.set_regs(&regs)?;
        }
        let done = Done::default();
        Ok(Self { image, space, regions, slots, vcpus, vm, done, records: false, pace: 1 })
    }

    /// The host is an emulator, so that times mean little: a vCPU has so many times as long until its turn ends, or a tick
    /// comes.
    pub fn slow_down(&mut self, times: u32) {
        self.pace = times;
    }

    /// vCPUs that start in long mode start with interrupts on; nobody sends them any. For Bochs, which keeps the host's
    /// interrupts back, too, while a guest has its own off: nothing would bring it out of a loop.
    pub fn start_interruptible(&mut self) -> Result<(), HarnessError> {
        if self.image.boot() == BootSpec::Long {
            for vcpu in &mut self.vcpus {
                let mut regs = vcpu.regs()?;
                regs.rflags |= rflags::IF;
                vcpu.set_regs(&regs)?;
            }
        }
        Ok(())
    }

    /// The next run is recorded: when each exit came, and each second-level fault, where the host shows it.
    pub fn record(&mut self) {
        self.records = true;
        self.vm.record_faults();
    }

    /// Runs the guest to its end, or to that of its budget.
    pub fn run(&mut self) -> Result<Run, HarnessError> {
        let manifest = self.image.manifest();
        let spec = manifest.budget;
        let start = Instant::now();
        let budget = Budget::time(Duration::from_millis(spec.ms)).instructions(spec.instructions);
        let machine = &manifest.machine;
        let devices = Devices::new(self.space.view(), machine.memory.0, machine.vcpus);
        let exits = if self.records { Exits::timed() } else { Exits::default() };
        let mut turns = Turns::new(devices, exits, self.vcpus.len(), &budget);
        let (ending, last) = self.take_turns(&mut turns)?;
        let elapsed = start.elapsed();
        let Turns { mut devices, exits, mut found, .. } = turns;
        self.settle(&mut found)?;
        let regs = self.vcpus[last].regs()?;
        let (mmio, mmio_unkept) = (std::mem::take(&mut devices.mmio), devices.mmio_unkept);
        let (memory_faults, chains) = (devices.memory_faults, std::mem::take(&mut found.chains));
        let console = String::from_utf8_lossy(&devices.into_console()).into_owned();
        Ok(Run {
            ending,
            vcpu: last,
            regs,
            console,
            mmio,
            mmio_unkept,
            memory_faults,
            chains,
            exits,
            elapsed,
            found,
        })
    }

    /// The guest.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The view in force.
    pub fn view(&self) -> Arc<FlatView> {
        self.space.view()
    }

    /// The slots.
    pub fn slots(&self) -> &Arc<Mutex<Slots>> {
        &self.slots
    }

    /// What the host shows of the VM.
    pub fn host(&self) -> &dyn HostView {
        &*self.vm
    }

    /// Lets `look` at all that a chain is followed through, as it is now; vCPU 0's paging and ring.
    pub fn observe<T>(&mut self, look: impl FnOnce(&Observer<'_>) -> T) -> Result<T, HarnessError> {
        let (guest, ring) = (self.guest_paging()?, self.ring()?);
        let (view, slots) = (self.view(), self.slots.lock().expect("no listener panics"));
        let still = self.vm.still();
        let host = still.as_deref().unwrap_or(&*self.vm);
        Ok(look(&Observer { guest, view: &view, slots: slots.registry(), host, ring }))
    }

    /// Control, segment and table registers of a vCPU.
    pub(crate) fn system_regs(&mut self, vcpu: usize) -> Result<SystemRegs, HarnessError> {
        Ok(self.vcpus[vcpu].system_regs()?)
    }

    /// The ring that the guest is in.
    pub fn ring(&mut self) -> Result<u8, HarnessError> {
        Ok(self.vcpus[0].system_regs()?.ss.dpl)
    }

    /// The guest's paging, as the vCPU's registers select it now; `None` with paging off.
    pub fn guest_paging(&mut self) -> Result<Option<Paging>, HarnessError> {
        paging_of(&self.vcpus[0].system_regs()?)
    }
}

fn dirty_method(spec: DirtyLogSpec) -> DirtyMethod {
    match spec {
        DirtyLogSpec::Bitmap => DirtyMethod::Bitmap,
        DirtyLogSpec::Manual => DirtyMethod::ManualProtect { initially_set: false },
        DirtyLogSpec::ManualInitiallySet => DirtyMethod::ManualProtect { initially_set: true },
        DirtyLogSpec::Ring => DirtyMethod::Ring { bytes: RING_BYTES },
    }
}

/// The paging that registers select; `None` with paging off.
pub(crate) fn paging_of(system: &SystemRegs) -> Result<Option<Paging>, HarnessError> {
    system.paging(Processor::new(MaxPhyAddr::MAX)).map_err(HarnessError::GuestPaging)
}
