//! SSE and SSE2 without floating-point arithmetic: moves, integers in lanes, shuffles.
//!
//! A vector instruction is a function of the old destination and the source. The tables name it ([`moves`],
//! [`integer`], [`shuffles`]); where operands are and what they may be is the same for all of them, and stands here.

mod integer;
mod lanes;
mod moves;
mod shuffles;
pub(in crate::soft::cpu) mod state;

use iced_x86::{CpuidFeature, EncodingKind, OpKind, Register};

use super::Outcome;
use super::system::check;
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::cpuid::Feature;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::operands::GprPart;
use crate::soft::cpu::segments::Logical;
use crate::soft::cpu::step::{Abort, Step};
use crate::soft::{AccessKind, Bus};
use crate::{Gpr, cr0, cr4};

/// Bytes of a vector.
const VECTOR: usize = 16;

/// What becomes of destination and source.
type Combine = fn(u128, u128) -> u128;
/// The same, with an immediate.
type Select = fn(u128, u128, u8) -> u128;

/// The extensions whose instructions are here.
const EXTENSIONS: [(CpuidFeature, Feature); 2] =
    [(CpuidFeature::SSE, Feature::SSE), (CpuidFeature::SSE2, Feature::SSE2)];

/// The number of an XMM register.
fn xmm(register: Register) -> Option<usize> {
    register.is_xmm().then(|| register as usize - Register::XMM0 as usize)
}

impl<B: Bus> Step<'_, B> {
    /// Any instruction of the tables; `None` for anything else.
    pub(super) fn vector(&mut self) -> Option<Outcome> {
        let code = self.instruction.code();
        let on_mmx = (0..self.instruction.op_count()).any(|i| self.instruction.op_register(i).is_mm());
        if code.encoding() != EncodingKind::Legacy || on_mmx {
            return None;
        }
        let &[extension] = code.cpuid_features() else { return None };
        let &(_, feature) = EXTENSIONS.iter().find(|(name, _)| *name == extension)?;
        let mnemonic = self.instruction.mnemonic();
        let combine = integer::operation(mnemonic)
            .or_else(|| moves::operation(&self.instruction))
            .or_else(|| shuffles::operation(mnemonic));
        if let Some(combine) = combine {
            return Some(self.change_vector(feature, |a, b, _| combine(a, b)));
        }
        shuffles::selection(mnemonic).map(|select| self.change_vector(feature, select))
    }

    fn change_vector(&mut self, feature: Feature, operation: impl Fn(u128, u128, u8) -> u128) -> Outcome {
        self.requires_vectors(feature)?;
        let old = xmm(self.instruction.op0_register()).map_or(0, |register| self.cpu.xmm[register]);
        let source = self.vector_source(1)?;
        // Without one it is 0.
        let new = operation(old, source, self.instruction.immediate8());
        self.set_vector_destination(new)
    }

    /// #UD and #NM (SDM vol. 3A, 15.1): without the extension, without the system's support, or before the registers
    /// are the task's own.
    fn requires_vectors(&self, feature: Feature) -> Outcome {
        self.requires(feature)?;
        self.vectors_are_enabled()
    }

    pub(super) fn vectors_are_enabled(&self) -> Outcome {
        let system = &self.cpu.system;
        if system.cr0 & cr0::EM != 0 || system.cr4 & cr4::OSFXSR == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        if system.cr0 & cr0::TS != 0 { Err(Exception::DEVICE_NOT_AVAILABLE.into()) } else { Ok(()) }
    }

    /// A register, memory or an immediate, followed by zeros.
    fn vector_source(&mut self, operand: u32) -> Result<u128, Abort> {
        let register = self.instruction.op_register(operand);
        match self.instruction.op_kind(operand) {
            OpKind::Register => match xmm(register) {
                Some(number) => Ok(self.cpu.xmm[number]),
                None => self.source(operand, Width::Qword).map(u128::from),
            },
            OpKind::Memory => {
                let (at, len) = self.vector_in_memory(AccessKind::Read)?;
                let mut bytes = [0; VECTOR];
                self.load_bytes(at, &mut bytes[..len], AccessKind::Read)?;
                Ok(u128::from_le_bytes(bytes))
            }
            _ => self.source(operand, Width::Byte).map(u128::from),
        }
    }

    fn set_vector_destination(&mut self, value: u128) -> Outcome {
        let register = self.instruction.op0_register();
        if self.instruction.op0_kind() == OpKind::Memory {
            let (at, len) = self.vector_in_memory(AccessKind::Write)?;
            return self.store_bytes(at, &value.to_le_bytes()[..len]);
        }
        match xmm(register) {
            Some(number) => self.cpu.xmm[number] = value,
            None => {
                GprPart::of(register).ok_or(Abort::Unimplemented)?.set(&mut self.cpu.regs, value as u64);
            }
        }
        Ok(())
    }

    /// Where the memory operand is, and its bytes.
    fn vector_in_memory(&mut self, kind: AccessKind) -> Result<(Logical, usize), Abort> {
        let len = self.instruction.memory_size().size();
        if len > VECTOR {
            return Err(Abort::Unimplemented);
        }
        let at = self.memory_operand();
        if len == VECTOR && !moves::is_unaligned(self.instruction.mnemonic()) {
            self.check_vector_alignment(at, kind)?;
        }
        Ok((at, len))
    }

    /// #GP for what does not start at a multiple of 16.
    fn check_vector_alignment(&mut self, at: Logical, kind: AccessKind) -> Outcome {
        let linear = self.linear(at, VECTOR, kind)?;
        check(linear.address.is_multiple_of(VECTOR as u64))
    }

    /// `MASKMOVDQU`: the bytes whose mask has its highest bit set, to where RDI points.
    pub(super) fn maskmovdqu(&mut self) -> Outcome {
        self.requires_vectors(Feature::SSE2)?;
        let addresses = match self.instruction.op0_kind() {
            OpKind::MemorySegDI => Width::Word,
            OpKind::MemorySegEDI => Width::Dword,
            _ => Width::Qword,
        };
        let (data, mask) = (self.vector_source(1)?.to_le_bytes(), self.vector_source(2)?.to_le_bytes());
        let (segment, start) = (self.operand_segment(), self.gpr(Gpr::Rdi, addresses));
        let at = |i: usize| Logical { segment, offset: start.wrapping_add(i as u64) & addresses.mask() };
        let chosen = (0..VECTOR).filter(|&i| mask[i] & 0x80 != 0);
        // #AC is for halves out of their place, whatever the mask says; so processors of AMD have it.
        let first = self.linear(at(0), 1, AccessKind::Write)?;
        self.check_alignment(first, VECTOR / 2)?;
        // None is written before all are sure to have a place.
        for i in chosen.clone() {
            self.check_access(at(i), 1, AccessKind::Write)?;
        }
        for i in chosen {
            self.store_bytes(at(i), &data[i..=i])?;
        }
        Ok(())
    }
}
