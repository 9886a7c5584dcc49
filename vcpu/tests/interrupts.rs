//! Interrupts of the software machine come at the tick at which they are due, however its run is cut into pieces.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use iced_x86::code_asm::*;
use memory_model::{AddrRange, AddressSpace, Gva, RamBlock, RegionTree};
use proptest::prelude::*;
use slot_manager::SlotManager;
use vcpu::boot::{GuestMap, LongMode, Ring};
use vcpu::soft::{SoftOptions, SoftVm};
use vcpu::{Budget, Entry, Exit, Limit, Regs, Vm};

const CODE: u64 = 0x10_0000;
const HANDLER: u64 = 0x11_0000;
const LOG: u64 = 0x18_0000;
const RAM: u64 = 0x20_0000;
const VECTOR: u8 = 30;
/// How many interrupts a program takes before it ends.
const INTERRUPTS: usize = 50;

/// What one interrupt found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Record {
    tsc: u64,
    rip: u64,
    loops: u64,
}

fn write_msr(a: &mut CodeAssembler, msr: u32, value: u32) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(eax, value)?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

/// Starts the periodic timer, and counts until interrupts have come often enough.
fn program(period: u32) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(r15, LOG)?;
    a.mov(r14d, INTERRUPTS as u32)?;
    a.xor(ebx, ebx)?;
    write_msr(&mut a, 0x1b, 0xfee0_0d00)?;
    write_msr(&mut a, 0x80f, 0x1ff)?;
    write_msr(&mut a, 0x832, 1 << 17 | u32::from(VECTOR))?;
    write_msr(&mut a, 0x83e, 0xb)?;
    write_msr(&mut a, 0x838, period)?;
    a.sti()?;
    let mut top = a.create_label();
    a.set_label(&mut top)?;
    a.inc(rbx)?;
    a.mov(qword_ptr(LOG - 8), rbx)?;
    a.lea(rsi, rbx + rbx * 4)?;
    a.shl(rsi, 3)?;
    a.jmp(top)?;
    a.assemble(CODE)
}

fn handler() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.rdtsc()?;
    a.mov(dword_ptr(r15), eax)?;
    a.mov(dword_ptr(r15 + 4), edx)?;
    a.mov(rax, qword_ptr(rsp))?;
    a.mov(qword_ptr(r15 + 8), rax)?;
    a.mov(qword_ptr(r15 + 16), rbx)?;
    a.add(r15, 24)?;
    write_msr(&mut a, 0x80b, 0)?;
    a.mov(al, 0x10)?;
    let mut more = a.create_label();
    a.dec(r14)?;
    a.jnz(more)?;
    a.out(0xf4, al)?;
    a.set_label(&mut more)?;
    a.iretq()?;
    a.assemble(HANDLER)
}

/// Runs the program in pieces of these lengths, again and again.
fn run(period: u32, pieces: &[u64]) -> (Vec<Record>, Regs) {
    let space = AddressSpace::new("memory", RegionTree::new("system", 1 << 64).unwrap()).unwrap();
    let ram = RamBlock::anonymous("ram", RAM).unwrap();
    let add = |tree: &mut RegionTree| {
        let ram = tree.ram("ram", ram.clone())?;
        tree.add(tree.root(), 0, ram)
    };
    space.update(add).unwrap();
    let vm = SoftVm::with(&SoftOptions { irqchip: true, ..SoftOptions::default() }).unwrap();
    space.register(Arc::new(Mutex::new(SlotManager::new(vm.slots())))).unwrap();
    ram.write(CODE, &program(period).unwrap()).unwrap();
    ram.write(HANDLER, &handler().unwrap()).unwrap();
    let all = GuestMap::identity(AddrRange::new(Gva(CODE), u128::from(RAM - CODE)).unwrap());
    let handlers = vec![(VECTOR, HANDLER)];
    let guest = LongMode { entry: CODE, ring: Ring::Kernel, handlers, maps: vec![all] };
    let (regs, system) = guest.install(&space.view()).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    vcpu.set_system_regs(&system).unwrap();
    vcpu.set_regs(&regs).unwrap();
    let budget = Budget::time(Duration::from_secs(60));
    let mut pieces = pieces.iter().cycle();
    loop {
        let piece = *pieces.next().unwrap();
        match vcpu.run(Entry::Resume, &budget.instructions(piece)).unwrap() {
            Exit::BudgetExceeded(Limit::Instructions) => {}
            Exit::IoOut { port: 0xf4, .. } => break,
            exit => panic!("{exit:x?}"),
        }
    }
    let word = |at: u64| {
        let mut bytes = [0; 8];
        ram.read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    };
    let record = |index| {
        let at = LOG + 24 * index as u64;
        Record { tsc: word(at), rip: word(at + 8), loops: word(at + 16) }
    };
    ((0..INTERRUPTS).map(record).collect(), vcpu.regs().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn a_periodic_timer_interrupts_at_its_tick(
        period in 40..5000u32,
        pieces in prop::collection::vec(prop_oneof![1..10u64, 1..10_000u64], 1..8),
    ) {
        let whole = run(period, &[u64::MAX]);
        for pair in whole.0.windows(2) {
            prop_assert_eq!(pair[1].tsc - pair[0].tsc, u64::from(period), "{:x?}", pair);
        }
        prop_assert_eq!(whole, run(period, &pieces));
    }
}
