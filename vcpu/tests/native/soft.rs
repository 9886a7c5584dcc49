//! The soft CPU in ring 3, with the code and the arenas at the addresses they have in this process.

use std::time::{Duration, Instant};

use memory_model::{Gpa, Gva};
use vcpu::soft::cpu::Cpu;
use vcpu::soft::{AccessKind, Bus, BusFault, Paging};
use vcpu::{Budget, DescriptorTable, Entry, Exit, Limit, Regs, Segment, SystemRegs, rflags};

use crate::case::{Case, End, Memory, Outcome};
use crate::draw::MAX_ITERATIONS;
use crate::layout::{BREAKPOINT, CODE, CODE_SIZE, GS_BASE, IDT};
use crate::native::Processor;

/// Linear memory: code, arenas, and nothing else.
struct Flat {
    code: Box<[u8; CODE_SIZE]>,
    memory: Memory,
}

impl Flat {
    fn bytes(&mut self, address: u64, len: usize, kind: AccessKind) -> Result<&mut [u8], BusFault> {
        if address >= IDT {
            return Err(BusFault::HostMemory { gpa: Gpa(address - IDT) });
        }
        let fault = BusFault::PageFault { error_code: 4, address: Gva(address) };
        if kind == AccessKind::Fetch {
            let start = address.checked_sub(CODE).ok_or(fault)? as usize;
            return self.code.get_mut(start..start + len).ok_or(fault);
        }
        self.memory.bytes(address, len).ok_or(fault)
    }
}

impl Bus for Flat {
    fn read(&mut self, _: &Paging, gva: Gva, buf: &mut [u8], kind: AccessKind) -> Result<(), BusFault> {
        buf.copy_from_slice(self.bytes(gva.raw(), buf.len(), kind)?);
        Ok(())
    }

    fn write(&mut self, _: &Paging, gva: Gva, data: &[u8]) -> Result<(), BusFault> {
        self.bytes(gva.raw(), data.len(), AccessKind::Write)?.copy_from_slice(data);
        Ok(())
    }

    fn invalidate_page(&mut self, _: Gva) {}

    fn invalidate_all(&mut self) {}
}

/// The soft CPU's side of all cases.
pub struct Machine {
    system: SystemRegs,
    bus: Flat,
    deadline: Instant,
}

impl Machine {
    /// In the state of this processor's thread.
    pub fn new(processor: &Processor) -> Self {
        let named = processor.selectors;
        let data = |selector, base| Segment { base, ..segment(selector, 3, false) };
        let system = SystemRegs {
            cs: segment(named.cs, 0xb, true),
            ds: data(named.ds, 0),
            es: data(named.es, 0),
            fs: data(named.fs, processor.fs_base),
            gs: data(named.gs, GS_BASE),
            ss: data(named.ss, 0),
            idt: DescriptorTable { base: IDT, limit: 0xfff },
            // As Linux has them: AM is on; OSFXSR, OSXMMEXCPT, FSGSBASE.
            cr0: 0x8005_0033,
            cr4: 0x1_0620,
            efer: 0xd01,
            ..SystemRegs::default()
        };
        let memory = Memory { low: [0; _], high: [0; _] };
        let bus = Flat { code: Box::new([BREAKPOINT; CODE_SIZE]), memory };
        Self { system, bus, deadline: Instant::now() + Duration::from_secs(24 * 3600) }
    }

    /// `None` if the CPU does not have the instruction.
    pub fn run(&mut self, case: &Case) -> Option<Outcome> {
        let at = (case.regs.rip - CODE) as usize..(case.regs.rip - CODE) as usize + case.bytes.len();
        self.bus.code[at.clone()].copy_from_slice(&case.bytes);
        self.bus.memory.clone_from(&case.memory);
        let regs = Regs { rflags: case.regs.rflags | rflags::IF, ..case.regs };
        let mut cpu = Cpu::new(regs, self.system);
        // CRC32 is there where CPUID offers all of SSE4.2.
        let [a, b, c, d] = cpu.cpuid.get(1, 0);
        cpu.cpuid.set(1, 0, [a, b, c | 1 << 20, d]);
        let end = self.step(&mut cpu, case);
        self.bus.code[at].fill(BREAKPOINT);
        Some(Outcome { end: end?, regs: cpu.regs, memory: self.bus.memory.clone() })
    }

    /// One instruction; of a repeated one, all iterations.
    fn step(&mut self, cpu: &mut Cpu, case: &Case) -> Option<End> {
        let budget = Budget { deadline: self.deadline, instructions: 1 };
        for _ in 0..MAX_ITERATIONS {
            let end = match cpu.run(&mut self.bus, &Entry::Resume, &budget) {
                Ok(Exit::BudgetExceeded(Limit::Instructions)) if cpu.regs.rip == case.regs.rip => continue,
                Ok(Exit::BudgetExceeded(Limit::Instructions)) => End::Retired,
                // The gate was asked for.
                Ok(Exit::MemoryFault { gpa: Some(gate) }) => End::Exception((gate.raw() / 16) as u8),
                Ok(Exit::Unimplemented { .. }) => return None,
                other => End::Other(format!("{other:x?}")),
            };
            return Some(end);
        }
        Some(End::Other("it repeats for ever".to_owned()))
    }
}

fn segment(selector: u16, kind: u8, long: bool) -> Segment {
    let present = Segment { selector, kind, present: true, limit: u32::MAX, ..Segment::default() };
    Segment { dpl: 3, code_or_data: true, long, db: !long, ..present }
}
