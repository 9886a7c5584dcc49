//! The software machine as its VMM sees it: slots, violations, budgets, kicks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use memory_model::{AddrRange, AddressSpace, Gpa, Gva, RamBlock, RegionId, RegionTree};
use slot_manager::SlotManager;
use vcpu::boot::{BootError, GuestMap, LongMode, Ring};
use vcpu::soft::SoftVm;
use vcpu::soft::cpu::Cpuid;
use vcpu::{Budget, Entry, Exit, Gpr, HostView, Limit, Vcpu, VcpuError, Vm, Witness};

const CODE: u64 = 0x10_0000;

struct Machine {
    space: AddressSpace,
    ram: RegionId,
    block: Arc<RamBlock>,
    vm: SoftVm,
}

impl Machine {
    fn new() -> Self {
        Self::of(SoftVm::new().unwrap())
    }

    /// With 4 MiB of RAM.
    fn of(vm: SoftVm) -> Self {
        let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
        let block = RamBlock::anonymous("ram", 0x40_0000).unwrap();
        let add = |tree: &mut RegionTree| {
            let ram = tree.ram("ram", block.clone())?;
            tree.add(tree.root(), 0, ram).map(|()| ram)
        };
        let ram = space.update(add).unwrap();
        space.register(Arc::new(Mutex::new(SlotManager::new(vm.slots())))).unwrap();
        Self { space, ram, block, vm }
    }

    /// A vCPU before `code`, at ring 0, with these pages mapped one to one.
    fn boot(&self, code: &[u8], maps: Vec<GuestMap>) -> Box<dyn Vcpu> {
        let [vcpu] = self.boot_many(code, maps);
        vcpu
    }

    fn boot_many<const N: usize>(&self, code: &[u8], maps: Vec<GuestMap>) -> [Box<dyn Vcpu>; N] {
        self.block.write(CODE, code).unwrap();
        let (regs, system) = guest(maps).install(&self.space.view()).unwrap();
        std::array::from_fn(|index| {
            let mut vcpu = self.vm.create_vcpu(index as u32).unwrap();
            vcpu.set_system_regs(&system).unwrap();
            vcpu.set_regs(&regs).unwrap();
            vcpu
        })
    }

    fn boot_with_all_mapped(&self, code: &[u8]) -> Box<dyn Vcpu> {
        self.boot(code, vec![identity(CODE, 0x30_0000)])
    }
}

fn guest(maps: Vec<GuestMap>) -> LongMode {
    LongMode { entry: CODE, ring: Ring::Kernel, handlers: vec![], maps }
}

fn identity(first: u64, bytes: u128) -> GuestMap {
    GuestMap::identity(AddrRange::new(Gva(first), bytes).unwrap())
}

fn soon() -> Budget {
    Budget::time(Duration::from_secs(20))
}

/// `mov [0x200000], eax; out 0xf4, al`, again and again.
const STORE: &[u8] = &[0x89, 0x04, 0x25, 0, 0, 0x20, 0, 0xe6, 0xf4, 0xeb, 0xf5];
const STORED: Gpa = Gpa(0x20_0000);

#[test]
fn one_violation_maps_a_page_and_the_next_access_takes_none() {
    let machine = Machine::new();
    let mut vcpu = machine.boot_with_all_mapped(STORE);
    assert_eq!(machine.vm.leaf(Gva(STORED.0), STORED), Witness::Absent);
    vcpu.run(Entry::Resume, &soon()).unwrap();
    let violations = machine.vm.violations();
    assert!(matches!(machine.vm.leaf(Gva(STORED.0), STORED), Witness::Seen(_)));
    vcpu.run(Entry::Resume, &soon()).unwrap();
    assert_eq!(machine.vm.violations(), violations);
}

#[test]
fn a_slot_that_goes_takes_its_leaves_along_and_the_guest_meets_a_hole() {
    let machine = Machine::new();
    let mut vcpu = machine.boot_with_all_mapped(STORE);
    vcpu.run(Entry::Resume, &soon()).unwrap();
    // The same RAM, but only up to the page that was stored to.
    let cut = |tree: &mut RegionTree| {
        tree.remove(machine.ram)?;
        let low = tree.alias("low", machine.ram, 0, STORED.0.into())?;
        tree.add(tree.root(), 0, low)
    };
    machine.space.update(cut).unwrap();
    assert_eq!(machine.vm.leaf(Gva(STORED.0), STORED), Witness::Absent);
    assert_eq!(machine.vm.slot_hva(STORED), Witness::Absent);
    let exit = vcpu.run(Entry::Resume, &soon()).unwrap();
    assert!(matches!(exit, Exit::MmioWrite { gpa: STORED, .. }), "{exit:?}");
}

#[test]
fn a_guest_table_where_no_memory_is_gives_the_guest_a_page_fault() {
    let machine = Machine::new();
    let mut vcpu = machine.boot_with_all_mapped(STORE);
    // The PDPT of address 0 lies behind the end of RAM. No handler: the fault ends as a triple fault.
    let root = vcpu.system_regs().unwrap().cr3;
    machine.block.write(root, &0x80_0003u64.to_le_bytes()).unwrap();
    let exit = vcpu.run(Entry::Resume, &soon()).unwrap();
    assert_eq!((exit, vcpu.regs().unwrap().rip), (Exit::Shutdown, CODE));
}

#[test]
fn budgets_end_an_endless_guest_and_it_can_go_on() {
    let machine = Machine::new();
    // inc eax; jmp back
    let mut vcpu = machine.boot_with_all_mapped(&[0xff, 0xc0, 0xeb, 0xfc]);
    let exit = vcpu.run(Entry::Resume, &soon().instructions(10_001)).unwrap();
    assert_eq!(exit, Exit::BudgetExceeded(Limit::Instructions));
    assert_eq!(vcpu.regs().unwrap()[Gpr::Rax], 5001);
    vcpu.run(Entry::Resume, &soon().instructions(1)).unwrap();
    assert_eq!(vcpu.regs().unwrap().rip, CODE);
    let exit = vcpu.run(Entry::Resume, &Budget::time(Duration::from_millis(20))).unwrap();
    assert_eq!(exit, Exit::BudgetExceeded(Limit::WallClock));
}

#[test]
fn a_kick_brings_an_endless_guest_back() {
    let machine = Machine::new();
    let mut vcpu = machine.boot_with_all_mapped(&[0xeb, 0xfe]);
    let kick = vcpu.kick();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| vcpu.run(Entry::Resume, &soon()).unwrap());
        kick.kick();
        assert_eq!(running.join().unwrap(), Exit::Kicked);
    });
}

#[test]
fn processors_are_what_their_cpuid_says() {
    // mov eax, 1; cpuid; popcnt eax, ecx; hlt
    let code = [0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0xf3, 0x0f, 0xb8, 0xc1, 0xf4];
    let mut cpuid = Cpuid::default();
    let [family, id, features, more] = cpuid.get(1, 0);
    let popcnt = 1 << 23;
    assert_ne!(features & popcnt, 0);
    cpuid.set(1, 0, [family, id, features & !popcnt, more]);
    for (cpuid, exit, ecx) in [
        (Cpuid::default(), Exit::Halt, features),
        // #UD, and no handler.
        (cpuid, Exit::Shutdown, features & !popcnt),
    ] {
        let machine = Machine::of(SoftVm::new().unwrap().with_cpuid(cpuid));
        let mut vcpu = machine.boot_with_all_mapped(&code);
        assert_eq!(vcpu.run(Entry::Resume, &soon()).unwrap(), exit);
        assert_eq!(vcpu.regs().unwrap()[Gpr::Rcx], u64::from(ecx));
    }
}

#[test]
fn vcpus_run_in_threads_and_their_locked_instructions_are_atomic() {
    const ROUNDS: u64 = 100_000;
    let machine = Machine::new();
    #[rustfmt::skip]
    let code = [
        0xb9, 0xa0, 0x86, 0x01, 0x00,                       //       mov ecx, ROUNDS
        0xf0, 0x48, 0xff, 0x04, 0x25, 0, 0, 0x20, 0,        // next: lock inc qword [0x200000]
        0xb0, 0x01,                                         // take: mov al, 1
        0x86, 0x04, 0x25, 0x10, 0, 0x20, 0,                 //       xchg al, [0x200010]
        0x84, 0xc0,                                         //       test al, al
        0x75, 0xf3,                                         //       jnz take
        0x48, 0x8b, 0x1c, 0x25, 0x08, 0, 0x20, 0,           //       mov rbx, [0x200008]
        0x48, 0xff, 0xc3,                                   //       inc rbx
        0x48, 0x89, 0x1c, 0x25, 0x08, 0, 0x20, 0,           //       mov [0x200008], rbx
        0xc6, 0x04, 0x25, 0x10, 0, 0x20, 0, 0,              //       mov byte [0x200010], 0
        0xff, 0xc9,                                         //       dec ecx
        0x75, 0xcb,                                         //       jnz next
        0xf4,                                               //       hlt
    ];
    let vcpus: [_; 4] = machine.boot_many(&code, vec![identity(CODE, 0x30_0000)]);
    std::thread::scope(|scope| {
        let running = vcpus.map(|mut vcpu| scope.spawn(move || vcpu.run(Entry::Resume, &soon()).unwrap()));
        running.into_iter().for_each(|vcpu| assert_eq!(vcpu.join().unwrap(), Exit::Halt));
    });
    let count = |at| machine.block.load_u64(at).unwrap();
    assert_eq!([count(STORED.0), count(STORED.0 + 8)], [4 * ROUNDS; 2], "counted with a lock, and under one");
}

#[test]
fn an_answer_is_not_lost_to_a_kick() {
    let machine = Machine::new();
    // mov eax, [0x401000], mapped by the guest behind the end of RAM; hlt
    let code = [0x8b, 0x04, 0x25, 0, 0x10, 0x40, 0, 0xf4];
    let mut vcpu = machine.boot(&code, vec![identity(CODE, 0x1000), identity(0x40_1000, 0x1000)]);
    assert!(matches!(vcpu.run(Entry::Resume, &soon()).unwrap(), Exit::MmioRead { .. }));
    vcpu.kick().kick();
    assert_eq!(vcpu.run(Entry::Data(vec![1, 2, 3, 4]), &soon()).unwrap(), Exit::Kicked);
    assert_eq!(vcpu.run(Entry::Resume, &soon()).unwrap(), Exit::Halt);
    assert_eq!(vcpu.regs().unwrap()[Gpr::Rax], 0x0403_0201);
}

#[test]
fn wrong_answers_are_errors_and_can_be_put_right() {
    let machine = Machine::new();
    // mov eax, [0x401000], mapped by the guest behind the end of RAM; hlt
    let hole = 0x40_1000;
    let code = [0x8b, 0x04, 0x25, 0, 0x10, 0x40, 0, 0xf4];
    let mut vcpu = machine.boot(&code, vec![identity(CODE, 0x1000), identity(hole, 0x1000)]);
    let unasked = vcpu.run(Entry::Data(vec![1]), &soon());
    assert!(matches!(unasked, Err(VcpuError::AnswerUnexpected { given: 1 })), "{unasked:?}");
    assert_eq!(vcpu.run(Entry::Resume, &soon()).unwrap(), Exit::MmioRead { gpa: Gpa(hole), size: 4 });
    let missing = vcpu.run(Entry::Resume, &soon());
    assert!(matches!(missing, Err(VcpuError::AnswerMissing { needed: 4 })), "{missing:?}");
    let short = vcpu.run(Entry::Data(vec![1]), &soon());
    assert!(matches!(short, Err(VcpuError::AnswerLength { needed: 4, given: 1 })), "{short:?}");
    assert_eq!(vcpu.run(Entry::Data(vec![1, 2, 3, 4]), &soon()).unwrap(), Exit::Halt);
    assert_eq!(vcpu.regs().unwrap()[Gpr::Rax], 0x0403_0201);
}

#[test]
fn a_boot_that_cannot_be_is_refused() {
    let machine = Machine::new();
    let view = machine.space.view();
    let bad_vector = LongMode { handlers: vec![(32, CODE)], ..guest(vec![]) };
    assert!(matches!(bad_vector.install(&view), Err(BootError::Vector { vector: 32 })));
    // More page tables than the boot has room for: one for each 2 MiB.
    let many = guest(vec![identity(CODE, 0x2000_0000)]).install(&view);
    assert!(matches!(many, Err(BootError::Map { source: ept::Error::OutOfTables, .. })), "{many:?}");
    machine.space.update(|tree| tree.set_enabled(machine.ram, false)).unwrap();
    let no_ram = guest(vec![]).install(&machine.space.view()).unwrap_err();
    assert!(no_ram.to_string().contains("no memory at 0x"), "{no_ram}");
}
