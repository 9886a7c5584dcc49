//! One decoded instruction, and the processor as it runs them.

use memory_model::Hva;

use super::flags::Flags;
use super::pages::Pages;
use super::wide::Wide;
use crate::soft::AccessKind;
use crate::{Regs, SystemRegs, cr4};

/// Does one instruction.
pub(super) type Run = fn(&mut Core, &Op) -> Flow;

/// What comes after an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flow {
    /// The next one of the block.
    Next,
    /// The instruction has set RIP.
    Branch,
    /// The instruction is done, but has written into the page that holds the block.
    Stale,
    /// As [`Branch`](Self::Branch), and the page that holds [`Core::invalid`] is no longer where it was.
    Invalidated,
    /// Nothing was done: a page is not at hand ([`Core::missing`]), or the instruction is one for the exact interpreter.
    Missed,
}

/// A register of [`Core`] that is always zero.
pub(super) const ZERO: u8 = 16;
/// The bases of FS and GS.
pub(super) const FS_BASE: u8 = 17;
pub(super) const GS_BASE: u8 = 18;
const REGISTERS: usize = 32;

/// A decoded instruction.
#[derive(Clone, Copy)]
pub(super) struct Op {
    pub run: Run,
    /// The immediate, or where a branch leads.
    pub immediate: u64,
    pub displacement: u64,
    /// Registers, as indexes of [`Core::registers`].
    pub target: u8,
    pub source: u8,
    pub base: u8,
    pub index: u8,
    pub segment: u8,
    /// The index is shifted left by this.
    pub scale: u8,
    /// From the start of the block to the end of the instruction.
    pub end: u8,
}

/// What instructions work on.
pub(super) struct Core<'a> {
    /// The general purpose registers, zero, and the bases of FS and GS.
    registers: [u64; REGISTERS],
    pub flags: Flags,
    /// Of the block, while it runs.
    pub rip: u64,
    pub pages: &'a mut Pages,
    /// Where the code lies: a store there ends the block.
    pub code: Hva,
    /// The access that found no page.
    pub missing: Option<Missing>,
    /// What `INVLPG` has named.
    pub invalid: u64,
    /// Whether it runs in ring 0.
    pub privileged: bool,
    address_bits: u32,
}

/// An access to a page that is not at hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Missing {
    pub address: u64,
    pub kind: AccessKind,
}

impl<'a> Core<'a> {
    /// The processor in that state, over its pages.
    pub fn new(regs: &Regs, system: &SystemRegs, pages: &'a mut Pages) -> Self {
        let mut registers = [0; REGISTERS];
        registers[..16].copy_from_slice(&regs.gpr);
        registers[usize::from(FS_BASE)] = system.fs.base;
        registers[usize::from(GS_BASE)] = system.gs.base;
        Self {
            registers,
            flags: Flags::new(regs.rflags),
            rip: regs.rip,
            pages,
            code: Hva(0),
            missing: None,
            invalid: 0,
            privileged: system.cpl() == 0,
            address_bits: if system.cr4 & cr4::LA57 != 0 { 57 } else { 48 },
        }
    }

    /// Puts back what instructions have changed.
    pub fn leave(&self, regs: &mut Regs) {
        regs.gpr.copy_from_slice(&self.registers[..16]);
        regs.rip = self.rip;
        regs.rflags = self.flags.bits();
    }

    /// A register, whole.
    #[inline(always)]
    pub fn get(&self, register: u8) -> u64 {
        self.registers[usize::from(register) % REGISTERS]
    }

    #[inline(always)]
    pub fn set(&mut self, register: u8, value: u64) {
        self.registers[usize::from(register) % REGISTERS] = value;
    }

    /// The low part of a register.
    #[inline(always)]
    pub fn read<W: Wide>(&self, register: u8) -> u64 {
        self.get(register) & W::MASK
    }

    /// Writes the low part of a register; `value` is zero-extended.
    #[inline(always)]
    pub fn write<W: Wide>(&mut self, register: u8, value: u64) {
        self.set(register, W::merge(self.get(register), value));
    }

    /// The address within its segment.
    #[inline(always)]
    pub fn effective(&self, op: &Op) -> u64 {
        let index = self.get(op.index) << (op.scale & 3);
        self.get(op.base).wrapping_add(index).wrapping_add(op.displacement)
    }

    #[inline(always)]
    pub fn linear(&self, op: &Op) -> u64 {
        self.effective(op).wrapping_add(self.get(op.segment))
    }

    /// Loads the memory operand.
    #[inline(always)]
    pub fn load<W: Wide>(&mut self, op: &Op) -> Option<u64> {
        self.load_at::<W>(self.linear(op))
    }

    #[inline(always)]
    pub fn load_at<W: Wide>(&mut self, address: u64) -> Option<u64> {
        match self.pages.read.get(address, W::BYTES) {
            Some(page) => Some(W::load(page, address as usize & 0xfff)),
            None => self.miss(address, AccessKind::Read),
        }
    }

    /// Loads the memory operand that will be stored to: from a page that may be written.
    #[inline(always)]
    pub fn load_to_modify<W: Wide>(&mut self, op: &Op) -> Option<u64> {
        let address = self.linear(op);
        match self.pages.write.get(address, W::BYTES) {
            Some(page) => Some(W::load(page, address as usize & 0xfff)),
            None => self.miss(address, AccessKind::Write),
        }
    }

    /// Stores to the memory operand, as the last thing of an instruction.
    #[inline(always)]
    pub fn store<W: Wide>(&mut self, op: &Op, value: u64) -> Flow {
        self.store_at::<W>(self.linear(op), value)
    }

    #[inline(always)]
    pub fn store_at<W: Wide>(&mut self, address: u64, value: u64) -> Flow {
        match self.pages.write.get(address, W::BYTES) {
            Some(page) => {
                W::store(page, address as usize & 0xfff, value);
                if page.hva() == self.code { Flow::Stale } else { Flow::Next }
            }
            None => {
                self.miss(address, AccessKind::Write);
                Flow::Missed
            }
        }
    }

    #[cold]
    fn miss(&mut self, address: u64, kind: AccessKind) -> Option<u64> {
        self.missing = Some(Missing { address, kind });
        None
    }

    /// RIP after the instruction.
    #[inline(always)]
    pub fn next(&self, op: &Op) -> u64 {
        self.rip.wrapping_add(op.end.into())
    }

    /// Goes on at `target`, unless that is no canonical address.
    #[inline(always)]
    pub fn jump(&mut self, target: u64) -> Flow {
        if !self.is_canonical(target) {
            return Flow::Missed;
        }
        self.rip = target;
        Flow::Branch
    }

    #[inline(always)]
    pub fn is_canonical(&self, address: u64) -> bool {
        let unused = 64 - self.address_bits;
        ((address << unused) as i64 >> unused) as u64 == address
    }
}
