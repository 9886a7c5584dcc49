//! Operands: registers, effective addresses, and reading and writing both.

use iced_x86::{Instruction, MemorySize, OpKind, Register};

use super::alu::Width;
use super::segments::{Logical, SegmentName};
use super::step::{Abort, Step};
use crate::soft::{AccessKind, Bus};
use crate::{Gpr, Regs};

/// A general purpose register, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GprPart {
    /// Index into [`Regs::gpr`].
    index: usize,
    pub width: Width,
    /// AH, CH, DH or BH.
    high: bool,
}

impl GprPart {
    /// `None` for anything else than a general purpose register.
    pub fn of(register: Register) -> Option<Self> {
        let from = |first: Register| register as usize - first as usize;
        let (index, width, high) = match register {
            _ if in_range(register, Register::AL, Register::BL) => (from(Register::AL), Width::Byte, false),
            _ if in_range(register, Register::AH, Register::BH) => (from(Register::AH), Width::Byte, true),
            _ if in_range(register, Register::SPL, Register::R15L) => {
                (from(Register::SPL) + Gpr::Rsp as usize, Width::Byte, false)
            }
            _ if in_range(register, Register::AX, Register::R15W) => (from(Register::AX), Width::Word, false),
            _ if in_range(register, Register::EAX, Register::R15D) => {
                (from(Register::EAX), Width::Dword, false)
            }
            _ if in_range(register, Register::RAX, Register::R15) => {
                (from(Register::RAX), Width::Qword, false)
            }
            _ => return None,
        };
        Some(Self { index, width, high })
    }

    /// Its index and width; `None` for AH, CH, DH and BH.
    pub fn number(self) -> Option<(u8, Width)> {
        (!self.high).then_some((self.index as u8, self.width))
    }

    pub fn whole(register: Gpr, width: Width) -> Self {
        Self { index: register as usize, width, high: false }
    }

    pub fn get(self, regs: &Regs) -> u64 {
        let shift = if self.high { 8 } else { 0 };
        regs.gpr[self.index] >> shift & self.width.mask()
    }

    /// A 32-bit write clears the upper half; smaller ones leave the rest alone.
    pub fn set(self, regs: &mut Regs, value: u64) {
        let register = &mut regs.gpr[self.index];
        let shift = if self.high { 8 } else { 0 };
        match self.width {
            Width::Qword => *register = value,
            Width::Dword => *register = value & self.width.mask(),
            width => *register = *register & !(width.mask() << shift) | (value & width.mask()) << shift,
        }
    }
}

fn in_range(register: Register, first: Register, last: Register) -> bool {
    (first as usize..=last as usize).contains(&(register as usize))
}

/// Where an operand is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Gpr(GprPart),
    Memory(Logical, Width),
}

impl Place {
    pub fn width(self) -> Width {
        match self {
            Self::Gpr(part) => part.width,
            Self::Memory(_, width) => width,
        }
    }
}

/// The width of an integer in memory.
pub(super) fn memory_width(instruction: &Instruction) -> Result<Width, Abort> {
    Ok(match instruction.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => Width::Byte,
        MemorySize::UInt16 | MemorySize::Int16 => Width::Word,
        MemorySize::UInt32 | MemorySize::Int32 | MemorySize::DwordOffset => Width::Dword,
        MemorySize::UInt64 | MemorySize::Int64 | MemorySize::QwordOffset => Width::Qword,
        _ => return Err(Abort::Unimplemented),
    })
}

/// The width of the addresses of a memory operand.
pub(super) fn address_width(instruction: &Instruction) -> Width {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let register = if base == Register::None { index } else { base };
    match register {
        Register::EIP => Width::Dword,
        Register::None if instruction.memory_displ_size() == 2 => Width::Word,
        Register::None if instruction.memory_displ_size() == 4 => Width::Dword,
        _ => GprPart::of(register).map_or(Width::Qword, |part| part.width),
    }
}

impl<B: Bus> Step<'_, B> {
    pub(super) fn gpr(&self, register: Gpr, width: Width) -> u64 {
        GprPart::whole(register, width).get(&self.cpu.regs)
    }

    pub(super) fn set_gpr(&mut self, register: Gpr, width: Width, value: u64) {
        GprPart::whole(register, width).set(&mut self.cpu.regs, value);
    }

    /// The address of the memory operand within its segment.
    pub(super) fn effective_address(&self) -> u64 {
        let instruction = &self.instruction;
        let value = |register| GprPart::of(register).map_or(0, |part| part.get(&self.cpu.regs));
        // For RIP-relative operands the decoder has added RIP to the displacement.
        let scaled = value(instruction.memory_index()).wrapping_mul(instruction.memory_index_scale().into());
        value(instruction.memory_base())
            .wrapping_add(scaled)
            .wrapping_add(instruction.memory_displacement64())
            & address_width(instruction).mask()
    }

    /// The segment of the memory operand. In 64-bit mode an override with CS, DS or ES is ignored.
    pub(super) fn operand_segment(&self) -> SegmentName {
        use Register::{EBP, ESP, RBP, RSP};
        let instruction = &self.instruction;
        if !self.cpu.in_64_bit_mode() {
            return SegmentName::of(instruction.memory_segment()).unwrap_or(SegmentName::Ds);
        }
        match instruction.segment_prefix() {
            Register::FS => SegmentName::Fs,
            Register::GS => SegmentName::Gs,
            Register::SS => SegmentName::Ss,
            _ if matches!(instruction.memory_base(), RBP | RSP | EBP | ESP) => SegmentName::Ss,
            _ => SegmentName::Ds,
        }
    }

    /// Where the memory operand is.
    pub(super) fn memory_operand(&self) -> Logical {
        Logical { segment: self.operand_segment(), offset: self.effective_address() }
    }

    /// The part of a memory operand that starts `bytes` behind its first.
    pub(super) fn memory_operand_at(&self, bytes: u64) -> Logical {
        let offset = self.effective_address().wrapping_add(bytes) & address_width(&self.instruction).mask();
        Logical { offset, ..self.memory_operand() }
    }

    /// Where operand `operand` is, if it can be read and written as an integer.
    pub(super) fn place(&self, operand: u32) -> Result<Place, Abort> {
        match self.instruction.op_kind(operand) {
            OpKind::Register => GprPart::of(self.instruction.op_register(operand)).map(Place::Gpr),
            OpKind::Memory => Some(Place::Memory(self.memory_operand(), memory_width(&self.instruction)?)),
            _ => None,
        }
        .ok_or(Abort::Unimplemented)
    }

    /// Reads an operand that is only read.
    pub(super) fn read(&mut self, place: Place) -> Result<u64, Abort> {
        self.read_as(place, AccessKind::Read)
    }

    /// Reads an operand that will be written too: a fault comes now, as for a write.
    pub(super) fn read_to_modify(&mut self, place: Place) -> Result<u64, Abort> {
        self.read_as(place, AccessKind::Write)
    }

    fn read_as(&mut self, place: Place, kind: AccessKind) -> Result<u64, Abort> {
        match place {
            Place::Gpr(part) => Ok(part.get(&self.cpu.regs)),
            Place::Memory(at, width) => self.load(at, width, kind),
        }
    }

    pub(super) fn write(&mut self, place: Place, value: u64) -> Result<(), Abort> {
        match place {
            Place::Gpr(part) => {
                part.set(&mut self.cpu.regs, value);
                Ok(())
            }
            Place::Memory(at, width) => self.store(at, width, value),
        }
    }

    /// The value of operand `operand`: a register, memory or an immediate, cut to `width`.
    pub(super) fn source(&mut self, operand: u32, width: Width) -> Result<u64, Abort> {
        let value = match self.instruction.op_kind(operand) {
            OpKind::Register | OpKind::Memory => {
                let place = self.place(operand)?;
                self.read(place)?
            }
            _ => self.instruction.try_immediate(operand).map_err(|_| Abort::Unimplemented)?,
        };
        Ok(value & width.mask())
    }

    /// Pushes onto the stack.
    pub(super) fn push(&mut self, width: Width, value: u64) -> Result<(), Abort> {
        let stack = self.cpu.stack_width();
        let pointer = self.gpr(Gpr::Rsp, stack).wrapping_sub(width.bytes() as u64) & stack.mask();
        self.store(Logical::stack(pointer), width, value)?;
        self.set_gpr(Gpr::Rsp, stack, pointer);
        Ok(())
    }

    pub(super) fn pop(&mut self, width: Width) -> Result<u64, Abort> {
        let pointer = self.gpr(Gpr::Rsp, self.cpu.stack_width());
        let value = self.load(Logical::stack(pointer), width, AccessKind::Read)?;
        self.release(width.bytes() as u64);
        Ok(value)
    }

    /// Moves the stack pointer up.
    pub(super) fn release(&mut self, bytes: u64) {
        let stack = self.cpu.stack_width();
        let pointer = self.gpr(Gpr::Rsp, stack).wrapping_add(bytes);
        self.set_gpr(Gpr::Rsp, stack, pointer);
    }
}
