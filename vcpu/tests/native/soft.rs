//! The soft CPU in ring 3, with the code and the arenas at the addresses they have in this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use memory_model::{Gpa, Gva, RamBlock, RamPage};
use vcpu::soft::cpu::Cpu;
use vcpu::soft::{AccessKind, Bus, BusFault, Paging};
use vcpu::{Budget, DescriptorTable, Entry, Exit, Gpr, Limit, Regs, Segment, SystemRegs, rflags};

use crate::case::{Case, End, Memory, Outcome};
use crate::draw::MAX_ITERATIONS;
use crate::layout::{BREAKPOINT, CODE, CODE_SIZE, GS_BASE, HIGH, HIGH_PAGES, IDT, LOW, LOW_PAGES, PAGE};
use crate::native::Processor;

/// Linear memory: code, the pages of the arenas, and nothing else.
struct Flat {
    stretches: [(u64, Arc<RamBlock>); 3],
    /// Whether the CPU gets whole pages, and so takes its quick path.
    quick: bool,
}

impl Flat {
    fn new() -> Self {
        let stretch = |base| (base, RamBlock::anonymous("memory", 2 * PAGE).expect("two pages"));
        Self { stretches: [CODE, LOW_PAGES, HIGH_PAGES].map(stretch), quick: false }
    }

    /// Where the bytes at `address` are.
    fn find(&self, address: u64, kind: AccessKind) -> Result<(&Arc<RamBlock>, u64), BusFault> {
        if address >= IDT {
            return Err(BusFault::HostMemory { gpa: Gpa(address - IDT) });
        }
        let inside = |(base, block): &'_ (u64, Arc<RamBlock>)| {
            (*base..base + block.size()).contains(&address) && (*base == CODE) == (kind == AccessKind::Fetch)
        };
        let found = self.stretches.iter().find(|stretch| inside(stretch));
        let (base, block) = found.ok_or(BusFault::PageFault { error_code: 4, address: Gva(address) })?;
        Ok((block, address - base))
    }

    fn put(&self, address: u64, bytes: &[u8], kind: AccessKind) {
        let (block, offset) = self.find(address, kind).expect("an address of the layout");
        block.write(offset, bytes).expect("inside");
    }

    fn set_memory(&self, memory: &Memory) {
        self.put(LOW, &memory.low, AccessKind::Write);
        self.put(HIGH, &memory.high, AccessKind::Write);
    }

    fn memory(&self) -> Memory {
        let mut memory = Memory { low: [0; _], high: [0; _] };
        for (address, bytes) in [(LOW, &mut memory.low), (HIGH, &mut memory.high)] {
            let (block, offset) = self.find(address, AccessKind::Read).expect("an arena");
            block.read(offset, bytes).expect("inside");
        }
        memory
    }
}

impl Bus for Flat {
    fn read(&mut self, _: &Paging, gva: Gva, buf: &mut [u8], kind: AccessKind) -> Result<(), BusFault> {
        let (block, offset) = self.find(gva.raw(), kind)?;
        let fault = BusFault::PageFault { error_code: 4, address: gva };
        block.read(offset, buf).map_err(|_| fault)
    }

    fn write(&mut self, _: &Paging, gva: Gva, data: &[u8]) -> Result<(), BusFault> {
        let (block, offset) = self.find(gva.raw(), AccessKind::Write)?;
        let fault = BusFault::PageFault { error_code: 4, address: gva };
        block.write(offset, data).map_err(|_| fault)
    }

    fn page(&mut self, _: &Paging, gva: Gva, kind: AccessKind) -> Option<RamPage> {
        let (block, offset) = self.find(gva.raw(), kind).ok().filter(|_| self.quick)?;
        RamPage::new(block, offset).ok()
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
        let bus = Flat::new();
        bus.put(CODE, &[BREAKPOINT; CODE_SIZE], AccessKind::Fetch);
        Self { system, bus, deadline: Instant::now() + Duration::from_secs(24 * 3600) }
    }

    /// `None` if the CPU does not have the instruction.
    pub fn run(&mut self, case: &Case, quick: bool) -> Option<Outcome> {
        self.bus.quick = quick;
        self.bus.put(case.regs.rip, &case.bytes, AccessKind::Fetch);
        self.bus.set_memory(&case.memory);
        let regs = Regs { rflags: case.regs.rflags | rflags::IF, ..case.regs };
        let mut cpu = Cpu::new(regs, self.system);
        cpu.xmm = case.xmm;
        // CRC32 is there where CPUID offers all of SSE4.2.
        let [a, b, c, d] = cpu.cpuid.get(1, 0);
        cpu.cpuid.set(1, 0, [a, b, c | 1 << 20, d]);
        let end = self.step(&mut cpu, case);
        self.bus.put(case.regs.rip, &vec![BREAKPOINT; case.bytes.len()], AccessKind::Fetch);
        Some(Outcome { end: end?, regs: cpu.regs, xmm: cpu.xmm, memory: self.bus.memory() })
    }

    /// What the soft CPU says it is: EAX, EBX, ECX and EDX of a leaf's first subleaf.
    pub fn cpuid(&mut self, leaf: u32) -> [u32; 4] {
        const CPUID: [u8; 2] = [0x0f, 0xa2];
        self.bus.put(CODE, &CPUID, AccessKind::Fetch);
        let mut regs = Regs { rip: CODE, ..Regs::default() };
        regs[Gpr::Rax] = leaf.into();
        let mut cpu = Cpu::new(regs, self.system);
        let budget = self.budget();
        let end = cpu.run(&mut self.bus, &Entry::Resume, &budget);
        assert_eq!(end, Ok(Exit::BudgetExceeded(Limit::Instructions)));
        self.bus.put(CODE, &[BREAKPOINT; 2], AccessKind::Fetch);
        [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx].map(|register| cpu.regs[register] as u32)
    }

    fn budget(&self) -> Budget {
        Budget { deadline: self.deadline, instructions: 1 }
    }

    /// One instruction; of a repeated one, all iterations.
    fn step(&mut self, cpu: &mut Cpu, case: &Case) -> Option<End> {
        let budget = self.budget();
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
