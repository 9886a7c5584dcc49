//! Branches, conditions and flags.

use iced_x86::{Code, Mnemonic as M, OpKind};

use super::Outcome;
use crate::soft::Bus;
use crate::soft::cpu::alu::{STATUS, Width, flag};
use crate::soft::cpu::cpuid::Feature;
use crate::soft::cpu::events::Shadow;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::step::{Abort, Step};
use crate::{Gpr, rflags};

/// The sixteen conditions of Jcc, SETcc and CMOVcc (SDM vol. 1, appendix B).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::soft::cpu) enum Condition {
    Overflow(bool),
    Below(bool),
    Equal(bool),
    BelowOrEqual(bool),
    Sign(bool),
    Parity(bool),
    Less(bool),
    LessOrEqual(bool),
}

impl Condition {
    /// The condition of a mnemonic; `false` inside is the negated one.
    pub fn of(mnemonic: M) -> Option<Self> {
        Some(match mnemonic {
            M::Jo | M::Seto | M::Cmovo => Self::Overflow(true),
            M::Jno | M::Setno | M::Cmovno => Self::Overflow(false),
            M::Jb | M::Setb | M::Cmovb => Self::Below(true),
            M::Jae | M::Setae | M::Cmovae => Self::Below(false),
            M::Je | M::Sete | M::Cmove => Self::Equal(true),
            M::Jne | M::Setne | M::Cmovne => Self::Equal(false),
            M::Jbe | M::Setbe | M::Cmovbe => Self::BelowOrEqual(true),
            M::Ja | M::Seta | M::Cmova => Self::BelowOrEqual(false),
            M::Js | M::Sets | M::Cmovs => Self::Sign(true),
            M::Jns | M::Setns | M::Cmovns => Self::Sign(false),
            M::Jp | M::Setp | M::Cmovp => Self::Parity(true),
            M::Jnp | M::Setnp | M::Cmovnp => Self::Parity(false),
            M::Jl | M::Setl | M::Cmovl => Self::Less(true),
            M::Jge | M::Setge | M::Cmovge => Self::Less(false),
            M::Jle | M::Setle | M::Cmovle => Self::LessOrEqual(true),
            M::Jg | M::Setg | M::Cmovg => Self::LessOrEqual(false),
            _ => return None,
        })
    }

    /// As instructions encode it.
    pub fn number(self) -> u8 {
        let (pair, wanted) = match self {
            Self::Overflow(wanted) => (0, wanted),
            Self::Below(wanted) => (1, wanted),
            Self::Equal(wanted) => (2, wanted),
            Self::BelowOrEqual(wanted) => (3, wanted),
            Self::Sign(wanted) => (4, wanted),
            Self::Parity(wanted) => (5, wanted),
            Self::Less(wanted) => (6, wanted),
            Self::LessOrEqual(wanted) => (7, wanted),
        };
        pair * 2 + u8::from(!wanted)
    }

    fn holds(self, flags: u64) -> bool {
        let set = |flag| flags & flag != 0;
        let less = set(rflags::SF) != set(rflags::OF);
        match self {
            Self::Overflow(wanted) => set(rflags::OF) == wanted,
            Self::Below(wanted) => set(rflags::CF) == wanted,
            Self::Equal(wanted) => set(rflags::ZF) == wanted,
            Self::BelowOrEqual(wanted) => set(rflags::CF | rflags::ZF) == wanted,
            Self::Sign(wanted) => set(rflags::SF) == wanted,
            Self::Parity(wanted) => set(rflags::PF) == wanted,
            Self::Less(wanted) => less == wanted,
            Self::LessOrEqual(wanted) => (less || set(rflags::ZF)) == wanted,
        }
    }
}

/// What `LAHF` and `SAHF` move.
const LOW_FLAGS: u64 = rflags::SF | rflags::ZF | rflags::AF | rflags::PF | rflags::CF;

impl<B: Bus> Step<'_, B> {
    /// Jcc, SETcc, CMOVcc.
    pub(super) fn conditional(&mut self, condition: Condition) -> Outcome {
        let holds = condition.holds(self.cpu.regs.rflags);
        match (self.instruction.op_kind(0), self.instruction.op_count()) {
            (OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64, _) => {
                if holds {
                    self.jump(self.instruction.near_branch_target())
                } else {
                    Ok(())
                }
            }
            (_, 1) => {
                let place = self.place(0)?;
                self.write(place, holds.into())
            }
            // The source is read, and the upper half of a 32-bit destination cleared, in either case.
            _ => {
                let place = self.place(0)?;
                let source = self.source(1, place.width())?;
                let value = if holds { source } else { self.read(place)? };
                self.write(place, value)
            }
        }
    }

    /// Sets RIP, which must be canonical, or within CS.
    fn jump(&mut self, target: u64) -> Outcome {
        self.check_target(&self.cpu.system.cs, target)?;
        self.cpu.regs.rip = target;
        Ok(())
    }

    /// Where a near branch leads, and the size of its return address.
    fn near_target(&mut self) -> Result<(u64, Width), Abort> {
        let width = match self.instruction.op_kind(0) {
            OpKind::NearBranch16 => Width::Word,
            OpKind::NearBranch32 => Width::Dword,
            OpKind::NearBranch64 => Width::Qword,
            _ => {
                let place = self.place(0)?;
                return Ok((self.read(place)?, place.width()));
            }
        };
        Ok((self.instruction.near_branch_target(), width))
    }

    pub(super) fn jmp(&mut self) -> Outcome {
        let (target, _) = self.near_target()?;
        self.jump(target)
    }

    pub(super) fn call(&mut self) -> Outcome {
        let (target, width) = self.near_target()?;
        let next = self.cpu.regs.rip;
        self.jump(target)?;
        self.push(width, next)
    }

    pub(super) fn ret(&mut self) -> Outcome {
        let (width, released) = match self.instruction.code() {
            Code::Retnw => (Width::Word, 0),
            Code::Retnd => (Width::Dword, 0),
            Code::Retnq => (Width::Qword, 0),
            Code::Retnw_imm16 => (Width::Word, self.instruction.immediate16()),
            Code::Retnd_imm16 => (Width::Dword, self.instruction.immediate16()),
            _ => (Width::Qword, self.instruction.immediate16()),
        };
        let target = self.pop(width)?;
        self.jump(target)?;
        self.release(released.into());
        Ok(())
    }

    /// The counter of `LOOP` and `JRCXZ` is as wide as addresses are.
    fn counter_width(&self) -> Width {
        use Code::*;
        match self.instruction.code() {
            Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX => Width::Word,
            Loopne_rel8_16_CX | Loopne_rel8_32_CX | Jcxz_rel8_16 | Jcxz_rel8_32 => Width::Word,
            Loop_rel8_16_ECX | Loop_rel8_32_ECX | Loop_rel8_64_ECX => Width::Dword,
            Loope_rel8_16_ECX | Loope_rel8_32_ECX | Loope_rel8_64_ECX => Width::Dword,
            Loopne_rel8_16_ECX | Loopne_rel8_32_ECX | Loopne_rel8_64_ECX => Width::Dword,
            Jecxz_rel8_16 | Jecxz_rel8_32 | Jecxz_rel8_64 => Width::Dword,
            _ => Width::Qword,
        }
    }

    pub(super) fn loop_while(&mut self, goes_on: fn(u64) -> bool) -> Outcome {
        let width = self.counter_width();
        let count = self.gpr(Gpr::Rcx, width).wrapping_sub(1) & width.mask();
        self.set_gpr(Gpr::Rcx, width, count);
        if count != 0 && goes_on(self.cpu.regs.rflags) {
            self.jump(self.instruction.near_branch_target())?;
        }
        Ok(())
    }

    pub(super) fn jump_if_count_zero(&mut self) -> Outcome {
        if self.gpr(Gpr::Rcx, self.counter_width()) == 0 {
            self.jump(self.instruction.near_branch_target())?;
        }
        Ok(())
    }

    /// `INT n`, `INT3` and `INTO`: RIP is already past the instruction, as a handler must see it.
    pub(super) fn interrupt(&mut self, vector: u8) -> Outcome {
        self.no_trap = true;
        self.deliver(&Exception::software(vector))
    }

    /// `INT1`: a #DB that no register reports, and that no DPL keeps out.
    pub(super) fn icebp(&mut self) -> Outcome {
        self.no_trap = true;
        self.cpu.held_breakpoints = 0;
        self.deliver(&Exception::DEBUG)
    }

    pub(super) fn lahf(&mut self) -> Outcome {
        let flags = self.cpu.regs.rflags & LOW_FLAGS | rflags::FIXED;
        let rax = &mut self.cpu.regs[Gpr::Rax];
        *rax = *rax & !0xff00 | flags << 8;
        Ok(())
    }

    pub(super) fn sahf(&mut self) -> Outcome {
        self.change_flags(LOW_FLAGS, self.cpu.regs[Gpr::Rax] >> 8)
    }

    fn flags_width(&self) -> Width {
        match self.instruction.code() {
            Code::Pushfw | Code::Popfw => Width::Word,
            Code::Pushfd | Code::Popfd => Width::Dword,
            _ => Width::Qword,
        }
    }

    /// RF is already clear, as it is in what `PUSHF` stores.
    pub(super) fn pushf(&mut self) -> Outcome {
        self.push(self.flags_width(), self.cpu.regs.rflags)
    }

    pub(super) fn popf(&mut self) -> Outcome {
        let width = self.flags_width();
        let flags = self.pop(width)?;
        let always = STATUS | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;
        let interrupt = flag(rflags::IF, self.has_io_privilege());
        let iopl = flag(rflags::IOPL, self.cpu.system.cpl() == 0);
        self.change_flags((always | interrupt | iopl) & width.mask(), flags)
    }

    /// `CLI`, `STI`.
    pub(super) fn set_interrupt_flag(&mut self, value: u64) -> Outcome {
        if !self.has_io_privilege() {
            return Err(Exception::protection(0).into());
        }
        if value & !self.cpu.regs.rflags & rflags::IF != 0 {
            self.cast_shadow(Shadow::Sti);
        }
        self.change_flags(rflags::IF, value)
    }

    /// `CLAC`, `STAC`.
    pub(super) fn set_alignment_flag(&mut self, value: u64) -> Outcome {
        self.requires(Feature::SMAP)?;
        if self.cpu.system.cpl() != 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        self.change_flags(rflags::AC, value)
    }
}
