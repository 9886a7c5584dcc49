//! Guest instructions a second of the software CPU.

mod loops;

use std::sync::Arc;
use std::time::{Duration, Instant};

use iced_x86::code_asm::CodeAssembler;
use loops::{LOOPS, Loop};
use memory_model::{Gva, RamBlock, RamPage};
use vcpu::soft::cpu::Cpu;
use vcpu::soft::{AccessKind, Bus, BusFault, Paging};
use vcpu::{Budget, Entry, Exit, Gpr, Regs, Segment, SystemRegs};

const CODE: u64 = 0x1000;
const DATA: u64 = 0x20_0000;

/// Linear addresses are offsets in a block.
struct Flat {
    ram: Arc<RamBlock>,
    quick: bool,
}

impl Bus for Flat {
    fn read(&mut self, _: &Paging, gva: Gva, buf: &mut [u8], _: AccessKind) -> Result<(), BusFault> {
        self.ram.read(gva.0, buf).map_err(|_| BusFault::NotCanonical)
    }
    fn write(&mut self, _: &Paging, gva: Gva, data: &[u8]) -> Result<(), BusFault> {
        self.ram.write(gva.0, data).map_err(|_| BusFault::NotCanonical)
    }
    fn page(&mut self, _: &Paging, gva: Gva, _: AccessKind) -> Option<RamPage> {
        RamPage::new(&self.ram, gva.0).ok().filter(|_| self.quick)
    }
    fn invalidate_page(&mut self, _: Gva) {}
    fn invalidate_all(&mut self) {}
}

fn program(repeat: Loop) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    repeat(&mut a).unwrap();
    a.hlt().unwrap();
    a.assemble(CODE).unwrap()
}

fn run(program: &[u8], iterations: u64, quick: bool) -> (f64, u64) {
    let mut bus = Flat { ram: RamBlock::anonymous("ram", 0x40_0000).unwrap(), quick };
    bus.ram.write(CODE, program).unwrap();
    let mut regs = Regs { rip: CODE, rflags: 2, ..Regs::default() };
    regs[Gpr::Rcx] = iterations;
    regs[Gpr::Rdi] = DATA;
    let code = Segment {
        selector: 8,
        kind: 11,
        code_or_data: true,
        long: true,
        present: true,
        ..Default::default()
    };
    let system = SystemRegs { cs: code, cr0: 0x8000_0011, cr4: 0x20, efer: 0x500, ..SystemRegs::default() };
    let mut cpu = Cpu::new(regs, system);
    let start = Instant::now();
    let exit = cpu.run(&mut bus, &Entry::Resume, &Budget::time(Duration::from_secs(100))).unwrap();
    assert_eq!(exit, Exit::Halt);
    let rate = cpu.retired() as f64 / start.elapsed().as_secs_f64() / 1e6;
    (rate, cpu.regs.gpr.iter().fold(cpu.regs.rflags, |sum, reg| sum.rotate_left(9) ^ reg))
}

fn main() {
    for (name, repeat, _) in LOOPS {
        let program = program(repeat);
        let (exact, wanted) = run(&program, 20_000, false);
        let (_, got) = run(&program, 20_000, true);
        assert_eq!(got, wanted);
        let rates: Vec<f64> = (0..5).map(|_| run(&program, 10_000_000, true).0).collect();
        println!("{name}: exact {exact:.1} M/s, quick {rates:.0?} M/s");
    }
}
