//! The CPU on a small flat machine: memory at address 0, one right per page, no translation.

mod alu;
mod atomicity;
mod debug;
mod exceptions;
mod extensions;
mod instructions;
mod interrupts;
mod io;
mod legacy;
mod mmio;
mod mode_switches;
mod old_instructions;
mod programs;
mod real_mode;
mod segmentation;
mod system;
mod system_calls;
mod transfers;
mod vectors;

use std::time::Duration;

use memory_model::{Gpa, Gva};

use super::{Cpu, CpuError};
use crate::soft::irqchip::{Interrupts, Irqchip};
use crate::soft::{AccessKind, Bus, BusFault, Paging};
use crate::{Budget, DescriptorTable, Entry, Exit, Gpr, Regs, Segment, SystemRegs, rflags};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
/// Top of the ring 0 stack, and of the stack that IST 1 names.
const STACK0: u64 = 0x5000;
const STACK_IST: u64 = 0x6000;
const HANDLERS: u64 = 0x6000;
const CODE: u64 = 0x8000;
const DATA: u64 = 0xa000;
/// Top of the program's stack.
const STACK: u64 = 0xd000;
const READ_ONLY: u64 = 0xd000;
/// A device, with memory on both sides.
const MMIO: u64 = 0xe000;
const BEHIND_MMIO: u64 = 0xf000;
const ABSENT: u64 = 0x1_0000;
const MEMORY: usize = 0x1_0000;

const RING0_CODE: u16 = 0x08;
const RING0_DATA: u16 = 0x10;
const RING3_DATA: u16 = 0x1b;
const RING3_CODE: u16 = 0x23;
const TSS_SELECTOR: u16 = 0x28;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    Memory,
    Supervisor,
    ReadOnly,
    Device,
    /// A slot without a host page.
    NoHost,
}

#[derive(Clone)]
struct Flat {
    memory: Vec<u8>,
    pages: [Page; MEMORY >> 12],
    /// How many accesses to data succeed before one faults.
    accesses_left: Option<u32>,
    invalidated_pages: Vec<Gva>,
    invalidated_all: u32,
    /// Of the processor, which is the first.
    irqchip: Option<Irqchip>,
}

impl Flat {
    fn new() -> Self {
        let mut pages = [Page::Memory; MEMORY >> 12];
        pages[..CODE as usize >> 12].fill(Page::Supervisor);
        pages[READ_ONLY as usize >> 12] = Page::ReadOnly;
        pages[MMIO as usize >> 12] = Page::Device;
        let mut flat = Self {
            memory: vec![0; MEMORY],
            pages,
            accesses_left: None,
            invalidated_pages: Vec::new(),
            invalidated_all: 0,
            irqchip: None,
        };
        let gdt =
            [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
        flat.put_words(GDT, &gdt);
        flat.put_words(GDT + u64::from(TSS_SELECTOR), &[0x0000_8b00_0000_0067 | TSS << 16, 0]);
        flat.put(TSS + 4, &STACK0.to_le_bytes());
        flat.put(TSS + 36, &STACK_IST.to_le_bytes());
        // No I/O bitmap: it would start past the limit.
        flat.put(TSS + 0x66, &0x68u16.to_le_bytes());
        for vector in 0..32 {
            flat.set_gate(vector, 0x8e00);
        }
        flat
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.memory[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    fn put_words(&mut self, at: u64, words: &[u64]) {
        for (i, word) in words.iter().enumerate() {
            self.put(at + 8 * i as u64, &word.to_le_bytes());
        }
    }

    fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.memory[at as usize..][..8].try_into().unwrap())
    }

    /// A gate to [`handler`], with bits 32 to 47 of its descriptor: type, DPL, P, IST.
    fn set_gate(&mut self, vector: u8, attributes: u64) {
        let low = handler(vector) | u64::from(RING0_CODE) << 16 | attributes << 32;
        self.put_words(IDT + 16 * u64::from(vector), &[low, 0]);
    }

    fn check(&mut self, paging: &Paging, gva: Gva, len: usize, kind: AccessKind) -> Result<(), BusFault> {
        let write = kind == AccessKind::Write;
        let fault = |address, present| {
            let code = u32::from(present) | u32::from(write) << 1 | u32::from(paging.user) << 2;
            Err(BusFault::PageFault { error_code: code, address: Gva(address) })
        };
        if self.accesses_left == Some(0) {
            return fault(gva.raw(), true);
        }
        if kind != AccessKind::Fetch {
            self.accesses_left = self.accesses_left.map(|left| left - 1);
        }
        let next_page = (gva.raw() | 0xfff).wrapping_add(1);
        let crosses = gva.raw().wrapping_add(len as u64 - 1) & !0xfff == next_page;
        for address in [Some(gva.raw()), crosses.then_some(next_page)].into_iter().flatten() {
            if (address as i64) << 16 >> 16 != address as i64 {
                return Err(BusFault::NotCanonical);
            }
            match self.pages.get(address as usize >> 12) {
                None => return fault(address, false),
                Some(Page::Supervisor) if paging.user => return fault(address, true),
                Some(Page::ReadOnly) if write => return fault(address, true),
                Some(Page::NoHost) => return Err(BusFault::HostMemory { gpa: Gpa(address) }),
                Some(Page::Device) => {
                    let in_page = 0x1000 - (address & 0xfff) as usize;
                    let len = len - (address - gva.raw()) as usize;
                    return Err(BusFault::Mmio { gpa: Gpa(address), len: len.min(in_page) });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

impl Bus for Flat {
    fn read(&mut self, paging: &Paging, gva: Gva, buf: &mut [u8], kind: AccessKind) -> Result<(), BusFault> {
        self.check(paging, gva, buf.len(), kind)?;
        buf.copy_from_slice(&self.memory[gva.raw() as usize..][..buf.len()]);
        Ok(())
    }

    fn write(&mut self, paging: &Paging, gva: Gva, data: &[u8]) -> Result<(), BusFault> {
        self.check(paging, gva, data.len(), AccessKind::Write)?;
        self.put(gva.raw(), data);
        Ok(())
    }

    fn invalidate_page(&mut self, gva: Gva) {
        self.invalidated_pages.push(gva);
    }

    fn invalidate_all(&mut self) {
        self.invalidated_all += 1;
    }

    fn interrupts(&mut self, now: u64) -> Option<Interrupts<'_>> {
        Some(self.irqchip.as_mut()?.of(0, now))
    }
}

/// Where the handler of an exception is. It halts, unless a test puts code there.
fn handler(vector: u8) -> u64 {
    HANDLERS + 64 * u64::from(vector)
}

fn segment(selector: u16, kind: u8, long: bool) -> Segment {
    let dpl = selector as u8 & 3;
    let present = Segment { selector, kind, dpl, present: true, limit: u32::MAX, ..Segment::default() };
    Segment { code_or_data: true, long, db: !long, ..present }
}

/// A CPU and its memory.
#[derive(Clone)]
struct Machine {
    cpu: Cpu,
    flat: Flat,
}

impl Machine {
    /// Runs `code` in ring 0 or 3.
    fn new(ring: u8, code: &[u8]) -> Self {
        let (code_selector, data_selector) =
            if ring == 0 { (RING0_CODE, RING0_DATA) } else { (RING3_CODE, RING3_DATA) };
        let data = segment(data_selector, 3, false);
        let system = SystemRegs {
            cs: segment(code_selector, 0xb, true),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment {
                selector: TSS_SELECTOR,
                base: TSS,
                limit: 0x67,
                kind: 0xb,
                present: true,
                ..Segment::default()
            },
            gdt: DescriptorTable { base: GDT, limit: 0x37 },
            idt: DescriptorTable { base: IDT, limit: 0xfff },
            cr0: 0x8001_0033,
            cr3: 0x1000,
            cr4: 0x620,
            efer: 0xd00,
            ..SystemRegs::default()
        };
        let mut regs = Regs { rip: CODE, rflags: rflags::FIXED, ..Regs::default() };
        regs[Gpr::Rsp] = STACK;
        let mut flat = Flat::new();
        flat.memory[CODE as usize..DATA as usize].fill(0xf4);
        flat.memory[HANDLERS as usize..CODE as usize].fill(0xf4);
        flat.put(CODE, code);
        Self { cpu: Cpu::new(regs, system), flat }
    }

    fn with(mut self, register: Gpr, value: u64) -> Self {
        self.cpu.regs[register] = value;
        self
    }

    fn resume(&mut self, entry: Entry) -> Result<Exit, CpuError> {
        let budget = Budget::time(Duration::from_secs(60)).instructions(1000);
        self.cpu.run(&mut self.flat, &entry, &budget)
    }

    fn run(&mut self) -> Exit {
        self.resume(Entry::Resume).unwrap()
    }

    fn answer(&mut self, data: &[u8]) -> Exit {
        self.resume(Entry::Data(data.to_vec())).unwrap()
    }

    /// Runs one instruction, or into the handler of its exception.
    fn step(&mut self) -> Exit {
        let budget = Budget::time(Duration::from_secs(60)).instructions(1);
        self.cpu.run(&mut self.flat, &Entry::Resume, &budget).unwrap()
    }

    /// The vector whose handler is about to run.
    fn vector(&self) -> Option<u8> {
        (0..128).find(|&vector| handler(vector) == self.cpu.regs.rip)
    }

    /// The word `index` of the stack.
    fn stack(&self, index: u64) -> u64 {
        self.flat.word(self.cpu.regs[Gpr::Rsp] + 8 * index)
    }
}
