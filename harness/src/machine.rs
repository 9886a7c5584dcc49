//! A machine for one guest: manifest -> address space -> slots -> VM -> vCPUs; then the run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ept::{MaxPhyAddr, Paging, Processor};
use guest_tests::{
    BackingSpec, BootSpec, DirtyLogSpec, Image, KindSpec, Manifest, MmioSpec, Occasion, PagesOf, RegionSpec,
};
use memory_model::{
    AccessRules, AddrRange, AddressSpace, Backing, FlatView, Gpa, Gva, MemTxAttrs, MemTxError, MemoryError,
    MmioOps, PageSize, Pages, RamBlock, RamOptions, RegionId, RegionTree,
};
use slot_manager::{DirtyMethod, SlotExecutor, SlotManager};
use vcpu::boot::linux::Linux;
use vcpu::boot::multiboot::Multiboot;
use vcpu::boot::pvh::Pvh;
use vcpu::boot::{GuestMap, LongMode, RESERVED_BYTES, Ring, information_page};
use vcpu::{Budget, Entry, Exit, Gpr, HostView, Limit, Regs, SystemRegs, Vcpu, Vm, rflags};
use vm_memory::{Bytes, GuestAddress};

use crate::chain::{Chain, Observer};
use crate::devices::{Devices, pc};
use crate::exits::Exits;
use crate::judge::Judge;
use crate::steps::{Done, is_known};
use crate::{HarnessError, PORT_BELL};

/// The slots of a machine, as its address space's listener keeps them.
pub type Slots = SlotManager<Box<dyn SlotExecutor>>;

/// How long a vCPU runs before it is another one's turn: by instructions, or by time on one that does not count them.
const TURN: Slice = Slice { instructions: 256, time: Duration::from_micros(50) };
/// How long it runs from one tick to the next.
const TICK: Slice = Slice { instructions: 1009, time: Duration::from_micros(100) };
/// After so many ticks there are no more.
const MAX_TICKS: u8 = 255;
/// The size of a dirty ring.
const RING_BYTES: u32 = 64 << 10;
/// Of the stack of each processor that starts in long mode.
const STACK_BYTES: u64 = 16 << 10;

#[derive(Clone, Copy)]
struct Slice {
    instructions: u64,
    time: Duration,
}

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
            add_regions(tree, manifest)
        })?;
        let mut slots = SlotManager::new(executor);
        let dirty_method = dirty_method(manifest.machine.dirty_log);
        slots.set_dirty_method(dirty_method).map_err(HarnessError::DirtyMethod)?;
        let slots = Arc::new(Mutex::new(slots));
        space.register(slots.clone())?;
        let view = space.view();
        load(&image, &view)?;
        let (regs, system) = boot(&image, &view)?;
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
        let mut devices = Devices::new(self.space.view(), machine.memory.0, machine.vcpus);
        let mut found = Judge::default();
        let mut exits = if self.records { Exits::timed() } else { Exits::default() };
        let (ending, last) = self.take_turns(&mut devices, &mut exits, &budget, &mut found)?;
        let elapsed = start.elapsed();
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

    /// Runs the vCPUs in turn, on this one thread so that two runs are the same, until one of them ends the run or all
    /// sleep for good: why, and which was the last.
    fn take_turns(
        &mut self,
        devices: &mut Devices,
        exits: &mut Exits,
        budget: &Budget,
        found: &mut Judge,
    ) -> Result<(Ending, usize), HarnessError> {
        let several = self.vcpus.len() > 1;
        let mut entries = vec![Entry::Resume; self.vcpus.len()];
        let mut left = budget.instructions;
        let mut slice_end = None;
        for index in (0..self.vcpus.len()).cycle() {
            let ticking = devices.ticks < MAX_TICKS && is_known(&self.image, Occasion::Tick);
            let slice = if several { Some(TURN) } else { ticking.then_some(TICK) };
            let vcpu = &mut self.vcpus[index];
            let turn = slice.map_or(left, |slice| slice.instructions.min(left));
            let mut turn_budget = budget.instructions(turn);
            if let Some(slice) = slice.filter(|_| !vcpu.counts_instructions()) {
                // An exit in between does not put it off.
                let end = *slice_end.get_or_insert_with(|| Instant::now() + slice.time * self.pace);
                turn_budget.deadline = budget.deadline.min(end);
            }
            let entry = std::mem::replace(&mut entries[index], Entry::Resume);
            let exit = vcpu.run(entry, &turn_budget)?;
            let more = match exit {
                Exit::BudgetExceeded(Limit::Instructions) => {
                    left -= turn;
                    left > 0
                }
                Exit::BudgetExceeded(Limit::WallClock) => turn_budget.deadline < budget.deadline,
                _ => false,
            };
            if more || several {
                slice_end = None;
            }
            if more && ticking {
                devices.ticks += 1;
                self.act_on(Occasion::Tick, devices, found)?;
            }
            if more {
                continue;
            }
            exits.note(&exit);
            if let Some((line, high)) = Devices::interrupt_line(&exit) {
                self.vm.set_irq_line(line, high)?;
            }
            match &exit {
                Exit::IoOut { port: PORT_BELL, data, .. } => {
                    for &number in data {
                        self.act_on(Occasion::Bell(number), devices, found)?;
                    }
                }
                Exit::MemoryFault { .. } => {
                    devices.memory_faults += 1;
                    if is_known(&self.image, Occasion::MemoryFault) {
                        self.act_on(Occasion::MemoryFault, devices, found)?;
                        continue;
                    }
                }
                Exit::DirtyRingFull => {
                    let mut slots = self.slots.lock().expect("no listener panics");
                    slots.reap().map_err(HarnessError::DirtyRing)?;
                    continue;
                }
                _ => {}
            }
            match devices.serve(exit) {
                Ok(answer) => entries[index] = answer,
                Err(ending) => return Ok((ending, index)),
            }
        }
        unreachable!("a machine has a processor")
    }

    fn act_on(&mut self, on: Occasion, devices: &mut Devices, found: &mut Judge) -> Result<(), HarnessError> {
        self.act(on, found)?;
        devices.view = self.space.view();
        Ok(())
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

/// The tree that a manifest describes; its regions by name.
fn add_regions(
    tree: &mut RegionTree,
    manifest: &Manifest,
) -> Result<BTreeMap<String, RegionId>, HarnessError> {
    let mut named = BTreeMap::new();
    for spec in std::iter::once(&manifest.main_ram()).chain(&manifest.regions) {
        let id = create_region(tree, spec, &named)?;
        tree.set_enabled(id, spec.enabled)?;
        if spec.readonly {
            tree.set_readonly(id, true)?;
        }
        tree.add_with_priority(tree.root(), spec.gpa.0, id, spec.priority)?;
        named.insert(spec.name.clone(), id);
    }
    Ok(named)
}

fn create_region(
    tree: &mut RegionTree,
    spec: &RegionSpec,
    named: &BTreeMap<String, RegionId>,
) -> Result<RegionId, MemoryError> {
    let block = || {
        let (backing, shared) = match spec.backing {
            BackingSpec::Anonymous => (Backing::Anonymous, false),
            BackingSpec::Memfd => (Backing::Memfd, true),
        };
        let pages = match spec.pages {
            PagesOf::Usual => Pages::Usual,
            PagesOf::Small => Pages::Small,
            PagesOf::Thp => Pages::Thp,
        };
        RamBlock::create(&spec.name, spec.size.0, RamOptions { backing, shared, pages, ..Default::default() })
    };
    let device = || Arc::new(FixedAnswer(spec.value.unwrap_or(0)));
    match spec.kind {
        KindSpec::Ram => tree.ram(&spec.name, block()?),
        KindSpec::Rom => tree.rom(&spec.name, block()?),
        KindSpec::RomDevice => tree.rom_device(&spec.name, block()?, device()),
        KindSpec::Mmio => tree.mmio(&spec.name, spec.size.0.into(), device()),
        KindSpec::Alias => {
            let target = spec.target.as_ref().and_then(|target| named.get(target));
            let target = target.expect("the manifest was checked: an alias names a region before it");
            tree.alias(&spec.name, *target, spec.offset.map_or(0, |offset| offset.0), spec.size.0.into())
        }
    }
}

/// A device that answers every read with the same number, and forgets what is written.
struct FixedAnswer(u64);

impl MmioOps for FixedAnswer {
    fn read(&self, _offset: u64, _size: u8, _attrs: MemTxAttrs) -> Result<u64, MemTxError> {
        Ok(self.0)
    }
    fn write(&self, _offset: u64, _size: u8, _value: u64, _attrs: MemTxAttrs) -> Result<(), MemTxError> {
        Ok(())
    }
    fn rules(&self) -> AccessRules {
        AccessRules::ANY
    }
}

/// The paging that registers select; `None` with paging off.
pub(crate) fn paging_of(system: &SystemRegs) -> Result<Option<Paging>, HarnessError> {
    system.paging(Processor::new(MaxPhyAddr::MAX)).map_err(HarnessError::GuestPaging)
}

/// Copies the program into memory, which is fresh and so zero where the file has no bytes.
fn load(image: &Image, view: &FlatView) -> Result<(), HarnessError> {
    let reserved = boot_memory(image.boot());
    for segment in image.segments() {
        let memory = segment.memory;
        if memory.overlaps(reserved) {
            return Err(HarnessError::SegmentInBootMemory { segment: memory, reserved });
        }
        if let Some(gpa) = first_without_memory(view, memory) {
            return Err(HarnessError::SegmentOutsideMemory { segment: memory, gpa });
        }
        let loaded = view.write_slice(image.bytes_of(segment), GuestAddress(memory.first().0));
        loaded.map_err(|source| HarnessError::Load { segment: memory, source })?;
    }
    Ok(())
}

/// What the boot keeps for itself.
fn boot_memory(boot: BootSpec) -> AddrRange<Gpa> {
    match boot {
        BootSpec::Long => AddrRange::inclusive(Gpa(0), Gpa(RESERVED_BYTES - 1)).expect("written in order"),
        BootSpec::Multiboot | BootSpec::Pvh | BootSpec::Linux => information_page(),
    }
}

/// The first address in `range` where neither RAM nor ROM is.
fn first_without_memory(view: &FlatView, range: AddrRange<Gpa>) -> Option<Gpa> {
    let mut next = range.first();
    loop {
        let Some(found) = view.find(next).filter(|found| found.ram().is_some()) else { return Some(next) };
        if found.range.last() >= range.last() {
            return None;
        }
        next = found.range.last().checked_add(1)?;
    }
}

/// Writes what the guest finds in memory when it starts; gives its first registers.
fn boot(image: &Image, view: &FlatView) -> Result<(Regs, SystemRegs), HarnessError> {
    let (command_line, initrd) = (&image.manifest().machine.command_line, image.initrd());
    // A file for a 32-bit protocol has no other addresses.
    let entry = image.entry() as u32;
    let booted = match image.boot() {
        BootSpec::Long => long_mode(image)?.install(view),
        BootSpec::Multiboot => Multiboot { entry, command_line: command_line.clone() }.install(view),
        BootSpec::Pvh => {
            let last = image.segments().last().map_or(Gpa(0), |segment| segment.memory.last());
            Pvh { entry, command_line, initrd, last }.install(view)
        }
        BootSpec::Linux => Linux { kernel: image.bytes(), command_line, initrd }.install(view),
    };
    Ok(booted?)
}

/// The registers and tables that the manifest asks for.
fn long_mode(image: &Image) -> Result<LongMode, HarnessError> {
    let manifest = image.manifest();
    let mut handlers = Vec::new();
    for (vector, handler) in &manifest.handlers {
        handlers.push((vector.0, image.resolve(handler)?));
    }
    let regions = std::iter::once(manifest.main_ram()).chain(manifest.regions.iter().cloned());
    let mut maps: Vec<GuestMap> =
        regions.flat_map(|region| identity(&region, manifest.machine.page.0)).collect();
    maps.extend(manifest.maps.iter().filter_map(|map| {
        Some(GuestMap {
            gva: AddrRange::new(Gva(map.gva.0), map.size.0.into())?,
            gpa: Gpa(map.gpa.0),
            page: map.page.0,
            rights: guest_rights(map.access, map.ring),
        })
    }));
    let ring = if manifest.machine.ring == 0 { Ring::Kernel } else { Ring::User };
    Ok(LongMode { entry: image.entry(), ring, handlers, maps })
}

/// The identity map of a region, but for the boot's own memory: large pages where they fit, small ones at the ends.
fn identity(region: &RegionSpec, page: PageSize) -> Vec<GuestMap> {
    let end = region.gpa.0 + region.size.0;
    let first = region.gpa.0.max(RESERVED_BYTES);
    if first >= end {
        return Vec::new();
    }
    let map = |first: u64, end: u64, page| {
        let gva = AddrRange::new(Gva(first), end.saturating_sub(first).into())?;
        Some(GuestMap { page, ..GuestMap::identity(gva) })
    };
    let whole = AddrRange::new(Gva(first), (end - first).into()).and_then(|range| range.pages_within(page));
    let Some(whole) = whole.filter(|_| page != PageSize::Size4K) else {
        return map(first, end, PageSize::Size4K).into_iter().collect();
    };
    let (large_first, large_end) = (whole.first().0, whole.last().0 + 1);
    let pieces = [
        map(first, large_first, PageSize::Size4K),
        map(large_first, large_end, page),
        map(large_end, end, PageSize::Size4K),
    ];
    pieces.into_iter().flatten().collect()
}

/// A manifest's rights as entries of the guest's tables.
fn guest_rights(rights: guest_tests::Rights, ring: u8) -> ept::Rights {
    if rights.is_empty() {
        return ept::Rights::empty();
    }
    let mut bits = ept::Rights::READ;
    bits.set(ept::Rights::USER, ring == 3);
    bits.set(ept::Rights::WRITE, rights.write);
    bits.set(ept::Rights::EXEC, rights.execute);
    bits
}
