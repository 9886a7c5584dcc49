//! A guest that writes pages in a pattern, and its machine.

use std::sync::{Arc, Mutex, MutexGuard};

use kvm_bindings::{KVM_EXIT_DIRTY_RING_FULL, kvm_regs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use memory_model::{AddressSpace, DirtyClients, PageSize, RamBlock, RegionId, RegionTree};
use slot_manager::{DirtyMethod, KvmRings, KvmSlots, SlotError, SlotManager};

pub const PAGE: u64 = PageSize::Size4K.bytes();
/// Pages of RAM: no multiple of 64.
pub const PAGES: u64 = 1000;
/// Where its code lies: a page that it never writes.
const CODE: u64 = 0x1000;
/// The first page it may write.
pub const FIRST: u64 = 2;

/// 16-bit code: EDX times, and each time to EBP pages from EBX on, ESI bytes apart, write what is left of EDX.
const PROGRAM: &[u8] = &[
    0x66, 0x89, 0xdf, // outer: mov edi, ebx
    0x66, 0x89, 0xe9, // mov ecx, ebp
    0x67, 0x66, 0x89, 0x17, // inner: mov [edi], edx
    0x66, 0x01, 0xf7, // add edi, esi
    0x66, 0x49, // dec ecx
    0x75, 0xf5, // jnz inner
    0x66, 0x4a, // dec edx
    0x75, 0xeb, // jnz outer
    0xf4, // hlt
];

pub struct Machine {
    pub space: AddressSpace,
    pub manager: Arc<Mutex<SlotManager<KvmSlots>>>,
    pub block: Arc<RamBlock>,
    pub ram: RegionId,
    pub vm: Arc<VmFd>,
    rings: KvmRings,
}

/// A VM, or a line that says why nothing is checked.
pub fn vm(what: &str) -> Option<Arc<VmFd>> {
    let opened = Kvm::new().and_then(|kvm| kvm.create_vm());
    opened.inspect_err(|error| println!("not checked: {what}: /dev/kvm: {error}")).ok().map(Arc::new)
}

impl Machine {
    /// With all of RAM logged by `method`, if there is a KVM that can.
    pub fn new(method: DirtyMethod) -> Option<Self> {
        let vm = vm(&format!("{method:?}"))?;
        let slots = KvmSlots::new(vm.clone());
        let rings = slots.dirty_rings().clone();
        let mut manager = SlotManager::new(slots);
        match manager.set_dirty_method(method) {
            Err(error @ SlotError::Missing { .. }) => {
                println!("not checked: {method:?}: {error}");
                return None;
            }
            chosen => chosen.unwrap(),
        }
        let manager = Arc::new(Mutex::new(manager));
        let mut tree = RegionTree::new("system", 1 << 64).unwrap();
        let block = RamBlock::anonymous("ram", PAGES * PAGE).unwrap();
        block.write(CODE, PROGRAM).unwrap();
        let ram = tree.ram("ram", block.clone()).unwrap();
        tree.set_dirty_log(ram, DirtyClients::MIGRATION).unwrap();
        tree.add(tree.root(), 0, ram).unwrap();
        let space = AddressSpace::new("memory", tree).unwrap();
        space.register(manager.clone()).unwrap();
        Some(Self { space, manager, block, ram, vm, rings })
    }

    pub fn manager(&self) -> MutexGuard<'_, SlotManager<KvmSlots>> {
        self.manager.lock().unwrap()
    }

    pub fn vcpu(&self) -> Guest {
        let vcpu = self.vm.create_vcpu(0).unwrap();
        self.rings.add_vcpu(&vcpu).unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        (sregs.ds.base, sregs.ds.selector, sregs.ds.limit, sregs.ds.g) = (0, 0, u32::MAX, 1);
        vcpu.set_sregs(&sregs).unwrap();
        Guest { vcpu, manager: self.manager.clone() }
    }

    /// The guest pages found dirty, ascending.
    pub fn collect(&self) -> Vec<u64> {
        let dirty = self.manager().collect_all_dirty().unwrap();
        let mut pages: Vec<_> = dirty.pages().map(|gpa| gpa.page_number()).collect();
        pages.sort_unstable();
        pages.dedup();
        pages
    }
}

pub struct Guest {
    vcpu: VcpuFd,
    manager: Arc<Mutex<SlotManager<KvmSlots>>>,
}

impl Guest {
    /// Writes to `count` pages from `first` on, `stride` pages apart, `times` times over.
    pub fn write(&mut self, first: u64, count: u64, stride: u64, times: u64) {
        let regs = kvm_regs {
            rip: CODE,
            rflags: 2,
            rbx: first * PAGE,
            rbp: count,
            rsi: stride * PAGE,
            rdx: times,
            ..Default::default()
        };
        self.vcpu.set_regs(&regs).unwrap();
        loop {
            match self.vcpu.run().unwrap() {
                VcpuExit::Hlt => return,
                VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => {
                    self.manager.lock().unwrap().reap().unwrap()
                }
                other => panic!("the guest wants {other:?}"),
            }
        }
    }
}
