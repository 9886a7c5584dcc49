//! A guest that reads memory in a loop while its slots are split and merged beneath it sees no MMIO exit and no
//! wrong byte (rule R8).

mod gate;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use memory_model::{AddrRange, AddressSpace, Gva, MemoryError, PageSize, RamBlock, RegionTree};
use slot_manager::SlotManager;
use vcpu::boot::{GuestMap, LongMode, Ring};
use vcpu::soft::{SecondLevel, SoftOptions, SoftVm};
use vcpu::{Gpr, KvmVm, Vm};

use gate::Gate;

const PAGE: u64 = PageSize::Size4K.bytes();
const BYTES: u64 = 0x40_0000;
const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
/// Where the guest counts how often it has read all.
const END: u64 = BYTES - 2 * PAGE;
const ROUNDS: u64 = 100;

/// Every other page holds its own address.
#[rustfmt::skip]
const READ: &[u8] = &[
    0x48, 0x89, 0xde,             // again: mov rsi, rbx
    0x48, 0x8b, 0x06,             // next: mov rax, [rsi]
    0x48, 0x39, 0xf0,             // cmp rax, rsi
    0x75, 0x14,                   // jne wrong
    0x48, 0x81, 0xc6, 0, 0x20, 0, 0, // add rsi, 0x2000
    0x48, 0x39, 0xfe,             // cmp rsi, rdi
    0x72, 0xec,                   // jb next
    0x48, 0xff, 0xc1,             // inc rcx
    0x48, 0x89, 0x0f,             // mov [rdi], rcx
    0xeb, 0xe1,                   // jmp again
    0xe6, 0xf4,                   // wrong: out 0xf4, al
];

fn guest_reads_while_slots_change(vm: &dyn Vm) {
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    let block = RamBlock::anonymous("ram", BYTES).unwrap();
    let add = |tree: &mut RegionTree| {
        let ram = tree.ram("ram", block.clone())?;
        tree.add(tree.root(), 0, ram)
    };
    space.update(add).unwrap();
    let slots = Arc::new(Mutex::new(SlotManager::new(vm.slots())));
    space.register(slots.clone()).unwrap();
    block.write(CODE, READ).unwrap();
    for page in (DATA..END).step_by(2 * PAGE as usize) {
        block.write(page, &page.to_le_bytes()).unwrap();
    }
    let gva = AddrRange::new(Gva(CODE), (BYTES - CODE).into()).unwrap();
    let all = GuestMap::identity(gva);
    let guest = LongMode { entry: CODE, ring: Ring::User, handlers: vec![], maps: vec![all] };
    let (mut regs, system) = guest.install(&space.view()).unwrap();
    (regs[Gpr::Rbx], regs[Gpr::Rdi]) = (DATA, END);
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_system_regs(&system).unwrap();
    vcpu.set_regs(&regs).unwrap();

    let (gate, kick) = (Arc::new(Gate::default()), vcpu.kick());
    let (to_pause, to_kick) = (gate.clone(), kick.clone());
    slots.lock().unwrap().pause_by(move || to_pause.pause(&to_kick));
    let exit = std::thread::scope(|scope| {
        let running = scope.spawn(|| gate.run(&mut *vcpu, ControlFlow::Break));
        for round in 0..ROUNDS {
            // An odd page leaves, and comes back: one slot becomes two becomes one.
            let page = DATA + PAGE + round % 64 * 2 * PAGE;
            let hide = |tree: &mut RegionTree| {
                let hole = tree.reservation("hole", PAGE.into())?;
                tree.add_with_priority(tree.root(), page, hole, 1)?;
                Ok::<_, MemoryError>(hole)
            };
            let hole = space.update(hide).unwrap();
            assert_eq!(slots.lock().unwrap().registry().len(), 2);
            space.update(|tree| tree.remove(hole)).unwrap();
            // The guest has read all of its pages before the next round.
            let before = block.load_u64(END).unwrap();
            while block.load_u64(END).unwrap() == before && !gate.is_done() {
                std::thread::yield_now();
            }
        }
        gate.end(&kick);
        running.join().unwrap()
    });
    assert_eq!(exit, None, "the guest came out for another reason than to be stopped");
    assert_eq!(gate.pauses(), 2 * ROUNDS);
}

#[test]
fn the_software_machine() {
    for second_level in [SecondLevel::EPT, SecondLevel::NPT, SecondLevel::Shadow] {
        guest_reads_while_slots_change(&SoftVm::with(&SoftOptions::of(second_level)).unwrap());
    }
}

#[test]
fn kvm() {
    match KvmVm::new() {
        Ok(vm) => guest_reads_while_slots_change(&vm),
        Err(error) => println!("not checked: slots under a running guest on KVM: {error}"),
    }
}
