//! A guest at ring 0 that does a few instructions at a time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ept::{Access, Flags, Levels, Processor};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use memory_model::{
    AddrRange, AddressSpace, Gva, Hva, PageSize, Pages, RamBlock, RamOptions, RegionId, RegionTree,
};
use slot_manager::SlotManager;
use vcpu::boot::{GuestMap, LongMode, Ring};
use vcpu::soft::{SecondLevel, SoftOptions, SoftVm};
use vcpu::{Budget, Entry, Exit, Gpr, GuestTables, Vcpu, Vm};

pub const PAGE: u64 = PageSize::Size4K.bytes();
pub const BYTES: u64 = 0x100_0000;
const CODE: u64 = 0x10_0000;
/// From here on the guest maps all memory one to one, to read and write.
pub const DATA: u64 = 0x20_0000;

/// Every second level there is.
pub fn columns() -> Vec<SoftOptions> {
    let ept =
        |levels, accessed_dirty, execute_only| SecondLevel::Ept { levels, accessed_dirty, execute_only };
    let all = [
        SecondLevel::EPT,
        ept(Levels::Five, true, false),
        ept(Levels::Four, false, true),
        SecondLevel::NPT,
        SecondLevel::Npt { levels: Levels::Five },
        SecondLevel::Shadow,
    ];
    all.map(SoftOptions::of).to_vec()
}

pub struct Machine {
    pub space: AddressSpace,
    pub ram: RegionId,
    pub block: Arc<RamBlock>,
    pub vm: SoftVm,
    pub vcpu: Box<dyn Vcpu>,
}

impl Machine {
    /// With memory in pages of 4 KiB.
    pub fn new(options: &SoftOptions) -> Self {
        Self::with_pages(options, Pages::Small)
    }

    pub fn with_pages(options: &SoftOptions, pages: Pages) -> Self {
        let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
        let ram = RamOptions { pages, ..RamOptions::default() };
        let block = RamBlock::create("ram", BYTES, ram).unwrap();
        let add = |tree: &mut RegionTree| {
            let ram = tree.ram("ram", block.clone())?;
            tree.add(tree.root(), 0, ram).map(|()| ram)
        };
        let ram = space.update(add).unwrap();
        let vm = SoftVm::with(options).unwrap();
        vm.kernel().host.map_pages(&block, pages);
        space.register(Arc::new(Mutex::new(SlotManager::new(vm.slots())))).unwrap();
        let map =
            |first: u64, bytes: u64| GuestMap::identity(AddrRange::new(Gva(first), bytes.into()).unwrap());
        let maps = vec![map(CODE, PAGE), map(DATA, BYTES - DATA)];
        let guest = LongMode { entry: CODE, ring: Ring::Kernel, handlers: vec![], maps };
        let (regs, system) = guest.install(&space.view()).unwrap();
        let mut vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_system_regs(&system).unwrap();
        vcpu.set_regs(&regs).unwrap();
        Self { space, ram, block, vm, vcpu }
    }

    /// Puts instructions before the processor, and one that leaves the guest behind them.
    pub fn load(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let mut asm = CodeAssembler::new(64).unwrap();
        write(&mut asm).unwrap();
        asm.out(0xf4, al).unwrap();
        self.block.write(CODE, &asm.assemble(CODE).unwrap()).unwrap();
        let mut regs = self.vcpu.regs().unwrap();
        regs.rip = CODE;
        self.vcpu.set_regs(&regs).unwrap();
    }

    pub fn run(&mut self) -> Exit {
        self.vcpu.run(Entry::Resume, &Budget::time(Duration::from_secs(20))).unwrap()
    }

    /// The guest does it all.
    #[track_caller]
    pub fn does(&mut self, write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        self.load(write);
        let exit = self.run();
        assert!(matches!(exit, Exit::IoOut { port: 0xf4, .. }), "{exit:x?}");
    }

    /// The guest reads eight bytes.
    #[track_caller]
    pub fn reads(&mut self, gva: u64) -> u64 {
        self.does(|asm| {
            asm.mov(rbx, gva)?;
            asm.mov(rax, qword_ptr(rbx))
        });
        self.vcpu.regs().unwrap()[Gpr::Rax]
    }

    /// The guest writes eight bytes.
    #[track_caller]
    pub fn writes(&mut self, gva: u64, value: u64) {
        self.does(|asm| {
            asm.mov(rbx, gva)?;
            asm.mov(rax, value)?;
            asm.mov(qword_ptr(rbx), rax)
        });
    }

    /// Where the guest's own entry for the page at `gva` lies, one to one.
    pub fn pte(&mut self, gva: u64) -> u64 {
        self.entry(gva, 1)
    }

    /// The same for the entry of that level.
    pub fn entry(&mut self, gva: u64, level: u8) -> u64 {
        let processor = Processor::new(ept::MaxPhyAddr::MAX);
        let paging = self.vcpu.system_regs().unwrap().paging(processor).unwrap().unwrap();
        let walk = ept::walk(&GuestTables(&self.space.view()), &paging, gva, Access::READ, Flags::Keep);
        walk.path.iter().find(|step| step.level == level).unwrap().entry_address()
    }

    pub fn hva(&self, gpa: u64) -> Hva {
        Hva(self.block.hva().0 + gpa)
    }

    /// The pages of the process from `gpa` on.
    pub fn pages(&self, gpa: u64, pages: u64) -> AddrRange<Hva> {
        AddrRange::new(self.hva(gpa), (pages * PAGE).into()).unwrap()
    }

    #[track_caller]
    pub fn assert_clean(&self) {
        let found = self.vm.verify().unwrap();
        assert!(found.is_clean(), "{found}");
        self.vm.kernel().host.check().unwrap();
    }
}
