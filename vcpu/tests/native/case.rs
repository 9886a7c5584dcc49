//! A case, one instruction with all that it sees, and what became of it.

use std::fmt;

use iced_x86::{Code, FastFormatter, Instruction};
use vcpu::Regs;

use crate::layout::{ARENA, HIGH, LOW};

/// The contents of both arenas.
#[derive(Clone, PartialEq, Eq)]
pub struct Memory {
    pub low: [u8; ARENA],
    pub high: [u8; ARENA],
}

impl Memory {
    /// The `len` bytes at a linear address; `None` if some are outside the arenas.
    pub fn bytes(&mut self, address: u64, len: usize) -> Option<&mut [u8]> {
        let (base, arena) = if address < HIGH { (LOW, &mut self.low) } else { (HIGH, &mut self.high) };
        let start = usize::try_from(address.checked_sub(base)?).ok()?;
        arena.get_mut(start..start.checked_add(len)?)
    }

    /// Each byte that differs: its address, ours, the other's.
    fn differences(&self, other: &Self) -> impl Iterator<Item = (u64, u8, u8)> {
        let pairs = [(LOW, &self.low, &other.low), (HIGH, &self.high, &other.high)];
        pairs.into_iter().flat_map(|(base, ours, others)| {
            let bytes = ours.iter().zip(others).enumerate();
            bytes.filter(|(_, (a, b))| a != b).map(move |(at, (&a, &b))| (base + at as u64, a, b))
        })
    }
}

/// One instruction and the state before it.
#[derive(Clone)]
pub struct Case {
    pub form: Code,
    /// As the bytes decode at `regs.rip`.
    pub instruction: Instruction,
    pub bytes: Vec<u8>,
    /// RIP is the instruction's address.
    pub regs: Regs,
    pub xmm: [u128; 16],
    pub memory: Memory,
}

/// How an instruction ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It was executed; RIP says where it led.
    Retired,
    /// It raised the exception of this vector; RIP is its own.
    Exception(u8),
    /// Anything else, in words. Nothing agrees with that.
    Other(String),
}

/// The state after a case.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    pub end: End,
    pub regs: Regs,
    pub xmm: [u128; 16],
    pub memory: Memory,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        FastFormatter::new().format(&self.instruction, &mut text);
        let form = self.form.op_code();
        writeln!(f, "{:?}: {}, {}", self.form, form.instruction_string(), form.op_code_string())?;
        writeln!(f, "{text}    bytes {:02x?}", self.bytes)?;
        writeln!(f, "before:\n{}", self.regs)?;
        let registers = (0..self.instruction.op_count()).map(|i| self.instruction.op_register(i));
        for register in registers.filter(|register| register.is_xmm()) {
            writeln!(f, "{register:?} {:#034x}", self.xmm[register.number()])?;
        }
        Ok(())
    }
}

/// What `outcome` changed in memory, and how it ended.
pub fn describe(case: &Case, outcome: &Outcome) -> String {
    let mut text = format!("{:?}\n{}", outcome.end, outcome.regs);
    let registers = case.xmm.iter().zip(&outcome.xmm).enumerate();
    for (number, (before, after)) in registers.filter(|(_, (before, after))| before != after) {
        text += &format!("XMM{number} {before:#034x} -> {after:#034x}\n");
    }
    for (address, before, after) in case.memory.differences(&outcome.memory) {
        text += &format!("memory at {address:#x}: {before:#04x} -> {after:#04x}\n");
    }
    text
}
