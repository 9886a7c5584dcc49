//! A machine for one guest: manifest -> address space -> slots -> VM -> vCPUs; then the run.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ept::{MaxPhyAddr, Paging, Processor};
use guest_tests::{BackingSpec, BootSpec, Image, KindSpec, Manifest, MmioSpec, RegionSpec};
use memory_model::{
    AccessRules, AddrRange, AddressSpace, FlatView, Gpa, Gva, MemTxAttrs, MemTxError, MemoryError, MmioOps,
    PageSize, RamBlock, RegionId, RegionTree,
};
use slot_manager::{SlotExecutor, SlotManager};
use vcpu::boot::linux::Linux;
use vcpu::boot::multiboot::Multiboot;
use vcpu::boot::pvh::Pvh;
use vcpu::boot::{GuestMap, LongMode, RESERVED_BYTES, Ring, information_page};
use vcpu::{Budget, Entry, Exit, HostView, Limit, Regs, SystemRegs, Vcpu, Vm};
use vm_memory::{Bytes, GuestAddress};

use crate::HarnessError;
use crate::devices::{Devices, pc};

/// The slots of a machine, as its address space's listener keeps them.
pub type Slots = SlotManager<Box<dyn SlotExecutor>>;

/// So many instructions a vCPU runs, where there are several, before it is another one's turn.
const TURN: u64 = 256;

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
    /// The registers at the end.
    pub regs: Regs,
    /// What the guest wrote to its console.
    pub console: String,
    /// The MMIO accesses the host saw.
    pub mmio: Vec<MmioSpec>,
    /// Accesses beyond those kept in `mmio`.
    pub mmio_unkept: u64,
    /// From the first instruction to the last exit.
    pub elapsed: Duration,
}

/// A guest with all it needs to run, on one VM.
pub struct Machine {
    // Dropped in this order: the vCPUs, the VM, and only then the memory. A VM that lives while its memory is unmapped
    // makes the kernel take every page out of its tables one by one.
    vcpus: Vec<Box<dyn Vcpu>>,
    vm: Box<dyn Vm>,
    slots: Arc<Mutex<Slots>>,
    space: AddressSpace,
    image: Image,
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
        space.update(|tree| {
            if image.boot() != BootSpec::Long {
                pc::add_devices(tree)?;
            }
            add_regions(tree, manifest)
        })?;
        let slots = Arc::new(Mutex::new(SlotManager::new(executor)));
        space.register(slots.clone())?;
        let view = space.view();
        load(&image, &view)?;
        let (regs, system) = boot(&image, &view)?;
        let vcpus = (0..manifest.machine.vcpus).map(|index| vm.create_vcpu(index));
        let mut vcpus: Vec<_> = vcpus.collect::<Result<_, _>>()?;
        vcpus[0].set_system_regs(&system)?;
        vcpus[0].set_regs(&regs)?;
        Ok(Self { image, space, slots, vcpus, vm })
    }

    /// Runs the guest to its end, or to that of its budget.
    pub fn run(&mut self) -> Result<Run, HarnessError> {
        let manifest = self.image.manifest();
        let spec = manifest.budget;
        let start = Instant::now();
        let budget = Budget::time(Duration::from_millis(spec.ms)).instructions(spec.instructions);
        let machine = &manifest.machine;
        let mut devices = Devices::new(self.space.view(), machine.memory.0, machine.vcpus);
        let (ending, last) = self.take_turns(&mut devices, &budget)?;
        let elapsed = start.elapsed();
        let regs = self.vcpus[last].regs()?;
        let (mmio, mmio_unkept) = (std::mem::take(&mut devices.mmio), devices.mmio_unkept);
        let console = String::from_utf8_lossy(&devices.into_console()).into_owned();
        Ok(Run { ending, regs, console, mmio, mmio_unkept, elapsed })
    }

    /// Runs the vCPUs in turn, on this one thread so that two runs are the same, until one of them ends the run or all
    /// sleep for good: why, and which was the last.
    fn take_turns(
        &mut self,
        devices: &mut Devices,
        budget: &Budget,
    ) -> Result<(Ending, usize), HarnessError> {
        let alone = self.vcpus.len() == 1;
        let mut entries = vec![Entry::Resume; self.vcpus.len()];
        let mut left = budget.instructions;
        for index in (0..self.vcpus.len()).cycle() {
            let turn = if alone { left } else { left.min(TURN) };
            let entry = std::mem::replace(&mut entries[index], Entry::Resume);
            let exit = self.vcpus[index].run(entry, &budget.instructions(turn))?;
            if let Some((line, high)) = Devices::interrupt_line(&exit) {
                self.vm.set_irq_line(line, high)?;
            }
            if exit == Exit::BudgetExceeded(Limit::Instructions) {
                left -= turn;
                if left > 0 {
                    continue;
                }
            }
            match devices.serve(exit) {
                Ok(answer) => entries[index] = answer,
                Err(ending) => return Ok((ending, index)),
            }
        }
        unreachable!("a machine has a processor")
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

    /// The ring that the guest is in.
    pub fn ring(&mut self) -> Result<u8, HarnessError> {
        Ok(self.vcpus[0].system_regs()?.ss.dpl)
    }

    /// The guest's paging, as the vCPU's registers select it now; `None` with paging off.
    pub fn guest_paging(&mut self) -> Result<Option<Paging>, HarnessError> {
        let processor = Processor::new(MaxPhyAddr::MAX);
        self.vcpus[0].system_regs()?.paging(processor).map_err(HarnessError::GuestPaging)
    }
}

/// The tree that a manifest describes.
fn add_regions(tree: &mut RegionTree, manifest: &Manifest) -> Result<(), MemoryError> {
    let mut named: Vec<(String, RegionId)> = Vec::new();
    for spec in std::iter::once(&manifest.main_ram()).chain(&manifest.regions) {
        let id = create_region(tree, spec, &named)?;
        tree.add_with_priority(tree.root(), spec.gpa.0, id, spec.priority)?;
        named.push((spec.name.clone(), id));
    }
    Ok(())
}

fn create_region(
    tree: &mut RegionTree,
    spec: &RegionSpec,
    named: &[(String, RegionId)],
) -> Result<RegionId, MemoryError> {
    let block = || match spec.backing {
        BackingSpec::Anonymous => RamBlock::anonymous(&spec.name, spec.size.0),
        BackingSpec::Memfd => RamBlock::memfd(&spec.name, spec.size.0),
    };
    match spec.kind {
        KindSpec::Ram => tree.ram(&spec.name, block()?),
        KindSpec::Rom => tree.rom(&spec.name, block()?),
        KindSpec::Mmio => {
            tree.mmio(&spec.name, spec.size.0.into(), Arc::new(FixedAnswer(spec.value.unwrap_or(0))))
        }
        KindSpec::Alias => {
            let target = named.iter().find(|(name, _)| Some(name) == spec.target.as_ref());
            let (_, target) = target.expect("the manifest was checked: an alias names a region before it");
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
            rights: guest_rights(map.access),
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

/// A manifest's rights as entries of the guest's tables, for both rings.
fn guest_rights(rights: guest_tests::Rights) -> ept::Rights {
    if rights.is_empty() {
        return ept::Rights::empty();
    }
    let mut bits = ept::Rights::READ | ept::Rights::USER;
    bits.set(ept::Rights::WRITE, rights.write);
    bits.set(ept::Rights::EXEC, rights.execute);
    bits
}
