//! From a decoded instruction to the function that does it: the table of all quick instructions.

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register as Name};

use super::op::{FS_BASE, GS_BASE, Op, Run, ZERO};
use super::ops::alu::{self, Adc, Add, And, Cmp, Dec, Inc, Neg, Not, Or, Sbb, Sub, Test, Xor};
use super::ops::shifts::{self, Rcl, Rcr, Rol, Ror, Sar, Shl, Shr};
use super::ops::{Immediate, Memory, Register, branches, moves, multiply};
use super::wide::{W8, W16, W32, W64};
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::exec::Condition;
use crate::soft::cpu::operands::{GprPart, memory_width};

/// What becomes of an instruction.
pub(super) enum Translated {
    Next(Op),
    /// A branch.
    Last(Op),
    /// It is for the exact interpreter.
    Exact,
}

/// Translates an instruction that ends `end` bytes after the start of its block.
pub(super) fn translate(instruction: &Instruction, end: u8) -> Translated {
    let found = Form::of(instruction, end).and_then(|form| {
        if let Some(op) = form.branch() {
            return Some(Translated::Last(op));
        }
        form.straight().map(Translated::Next)
    });
    found.unwrap_or(Translated::Exact)
}

/// Where the operands are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Register(u8, Width),
    Memory,
    Immediate,
}

/// An instruction with its operands taken apart.
struct Form<'a> {
    instruction: &'a Instruction,
    kinds: [Option<Kind>; 2],
    /// Of the first operand.
    width: Width,
    op: Op,
}

/// The same function for each width, from 8 bits on.
macro_rules! by_width {
    ($width:expr, $w:ident => $run:expr) => {
        match $width {
            Width::Byte => {
                type $w = W8;
                $run as Run
            }
            Width::Word => {
                type $w = W16;
                $run as Run
            }
            width => from_dword!(width, $w => $run),
        }
    };
}

/// The same function for 32 and 64 bits.
macro_rules! from_dword {
    ($width:expr, $w:ident => $run:expr) => {
        match $width {
            Width::Dword => {
                type $w = W32;
                $run as Run
            }
            _ => {
                type $w = W64;
                $run as Run
            }
        }
    };
}

/// The same function for a register and for memory as the source `s`.
macro_rules! by_source {
    ($kind:expr, $s:ident => $run:expr) => {
        match $kind {
            Kind::Register(..) => {
                type $s = Register;
                $run
            }
            Kind::Memory => {
                type $s = Memory;
                $run
            }
            Kind::Immediate => {
                type $s = Immediate;
                $run
            }
        }
    };
}

/// The same function for each of the sixteen conditions.
macro_rules! by_condition {
    ($code:expr, $c:ident => $run:expr) => {
        by_condition!(@ $code, $c => $run, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $code:expr, $c:ident => $run:expr, $($n:literal)*) => {
        match $code {
            $($n => {
                const $c: u8 = $n;
                $run
            })*
            _ => return None,
        }
    };
}

impl<'a> Form<'a> {
    /// `None` for operands that no quick instruction has.
    fn of(instruction: &'a Instruction, end: u8) -> Option<Self> {
        let repeated_ret = instruction.mnemonic() == M::Ret;
        if instruction.has_lock_prefix()
            || (instruction.has_rep_prefix() || instruction.has_repne_prefix()) && !repeated_ret
        {
            return None;
        }
        let op = Op {
            run: moves::nop,
            immediate: 0,
            displacement: 0,
            target: ZERO,
            source: ZERO,
            base: ZERO,
            index: ZERO,
            segment: ZERO,
            scale: 0,
            end,
        };
        let mut form = Self { instruction, kinds: [None; 2], width: Width::Qword, op };
        for operand in 0..instruction.op_count().min(2) {
            form.kinds[operand as usize] = Some(form.operand(operand)?);
        }
        form.width = match form.kinds[0] {
            Some(Kind::Register(_, width)) => width,
            // It names an address, and no memory there.
            Some(Kind::Memory) if instruction.code() == Code::Invlpg_m => Width::Qword,
            Some(Kind::Memory) => memory_width(instruction).ok()?,
            _ => Width::Qword,
        };
        form.op.immediate &= form.width.mask();
        Some(form)
    }

    fn operand(&mut self, operand: u32) -> Option<Kind> {
        let instruction = self.instruction;
        Some(match instruction.op_kind(operand) {
            OpKind::Register => {
                let (number, width) = GprPart::of(instruction.op_register(operand))?.number()?;
                // An only operand is a target or a source.
                if operand == 0 {
                    self.op.target = number;
                }
                self.op.source = number;
                Kind::Register(number, width)
            }
            OpKind::Memory => self.memory().map(|()| Kind::Memory)?,
            OpKind::NearBranch64 => {
                self.op.immediate = instruction.near_branch64();
                Kind::Immediate
            }
            _ => {
                self.op.immediate = instruction.try_immediate(operand).ok()?;
                Kind::Immediate
            }
        })
    }

    /// Addresses of 64 bits. Of segments, FS and GS have a base; SS would decide the exception alone.
    fn memory(&mut self) -> Option<()> {
        let instruction = self.instruction;
        let number = |register| match register {
            // The decoder has added RIP to the displacement.
            Name::None | Name::RIP => Some(ZERO),
            register => {
                GprPart::of(register)?.number().filter(|part| part.1 == Width::Qword).map(|part| part.0)
            }
        };
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if base == Name::None && index == Name::None && instruction.memory_displ_size() == 4 {
            return None;
        }
        self.op.base = number(base)?;
        self.op.index = number(index)?;
        self.op.scale = instruction.memory_index_scale().trailing_zeros() as u8;
        self.op.displacement = instruction.memory_displacement64();
        self.op.segment = match instruction.memory_segment() {
            Name::FS => FS_BASE,
            Name::GS => GS_BASE,
            _ => ZERO,
        };
        Some(())
    }

    fn with(&self, run: Run) -> Op {
        Op { run, ..self.op }
    }

    fn branch(&self) -> Option<Op> {
        let instruction = self.instruction;
        let run = match instruction.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Jmp_rm64 => {
                by_source!(self.kinds[0]?, S => branches::jump::<S> as Run)
            }
            Code::Call_rel32_64 | Code::Call_rm64 => {
                by_source!(self.kinds[0]?, S => branches::call::<S> as Run)
            }
            Code::Retnq | Code::Retnq_imm16 => branches::ret,
            Code::Loop_rel8_64_RCX => branches::loop_rcx,
            Code::Jrcxz_rel8_64 => branches::jump_if_rcx_zero,
            Code::Invlpg_m => branches::invlpg,
            _ => match (instruction.op_count(), instruction.op0_kind()) {
                (1, OpKind::NearBranch64) => {
                    by_condition!(self.condition()?, C => branches::jump_if::<C> as Run)
                }
                _ => return None,
            },
        };
        Some(self.with(run))
    }

    fn straight(&self) -> Option<Op> {
        match self.instruction.mnemonic() {
            M::Mov => self.mov(),
            M::Movzx => self.movzx(),
            M::Movsx | M::Movsxd => self.movsx(),
            M::Lea => self.lea(),
            M::Push => self.push(),
            M::Pop => self.pop(),
            M::Add => self.binary::<Add>(),
            M::Adc => self.binary::<Adc>(),
            M::Sub => self.binary::<Sub>(),
            M::Sbb => self.binary::<Sbb>(),
            M::And => self.binary::<And>(),
            M::Or => self.binary::<Or>(),
            M::Xor => self.binary::<Xor>(),
            M::Cmp => self.binary::<Cmp>(),
            M::Test => self.binary::<Test>(),
            M::Inc => self.unary::<Inc>(),
            M::Dec => self.unary::<Dec>(),
            M::Neg => self.unary::<Neg>(),
            M::Not => self.unary::<Not>(),
            M::Shl | M::Sal => self.shift::<Shl>(),
            M::Shr => self.shift::<Shr>(),
            M::Sar => self.shift::<Sar>(),
            M::Rol => self.shift::<Rol>(),
            M::Ror => self.shift::<Ror>(),
            M::Rcl => self.shift::<Rcl>(),
            M::Rcr => self.shift::<Rcr>(),
            M::Imul => self.imul(),
            M::Mul => self.accumulator(|width, kind| {
                by_source!(kind, S => from_dword!(width, W => multiply::mul_accumulator::<W, S>))
            }),
            M::Div => self.accumulator(|width, kind| {
                by_source!(kind, S => from_dword!(width, W => multiply::div::<W, S>))
            }),
            M::Idiv => self.accumulator(|width, kind| {
                by_source!(kind, S => from_dword!(width, W => multiply::idiv::<W, S>))
            }),
            M::Xchg => self.xchg(),
            M::Bt => self.bit_test(),
            _ => self.conditional().or_else(|| self.bare()),
        }
    }

    /// Instructions whose code says everything.
    fn bare(&self) -> Option<Op> {
        Some(self.with(match self.instruction.code() {
            Code::Nopd | Code::Nopw | Code::Nopq | Code::Endbr64 => moves::nop,
            Code::Nop_rm16 | Code::Nop_rm32 | Code::Nop_rm64 => moves::nop,
            Code::Cwde => moves::extend_accumulator::<W32, W16>,
            Code::Cdqe => moves::extend_accumulator::<W64, W32>,
            Code::Cdq => moves::sign_into_rdx::<W32>,
            Code::Cqo => moves::sign_into_rdx::<W64>,
            Code::Leaveq => moves::leave,
            Code::Bswap_r32 => moves::bswap32,
            Code::Bswap_r64 => moves::bswap64,
            _ => return None,
        }))
    }

    fn mov(&self) -> Option<Op> {
        let run = match (self.kinds[0]?, self.kinds[1]?) {
            (Kind::Register(..), source) if self.is_as_wide(source) => {
                by_source!(source, S => by_width!(self.width, W => moves::mov_register::<W, S>))
            }
            (Kind::Memory, Kind::Register(..)) => {
                by_width!(self.width, W => moves::mov_memory::<W, Register>)
            }
            (Kind::Memory, Kind::Immediate) => {
                by_width!(self.width, W => moves::mov_memory::<W, Immediate>)
            }
            _ => return None,
        };
        Some(self.with(run))
    }

    fn is_as_wide(&self, source: Kind) -> bool {
        match source {
            Kind::Register(_, width) => width == self.width,
            _ => true,
        }
    }

    fn source_width(&self) -> Option<Width> {
        match self.kinds[1]? {
            Kind::Register(_, width) => Some(width),
            Kind::Memory => memory_width(self.instruction).ok(),
            Kind::Immediate => None,
        }
    }

    fn movzx(&self) -> Option<Op> {
        let (source, from) = (self.kinds[1]?, self.source_width()?);
        if self.width == Width::Word {
            return None;
        }
        Some(self.with(by_source!(source, S => by_width!(from, F => moves::movzx::<F, S>))))
    }

    fn movsx(&self) -> Option<Op> {
        let (source, from) = (self.kinds[1]?, self.source_width()?);
        if self.width == Width::Word {
            return None;
        }
        let run = match self.width {
            Width::Dword => by_source!(source, S => by_width!(from, F => moves::movsx::<W32, F, S>)),
            _ => by_source!(source, S => by_width!(from, F => moves::movsx::<W64, F, S>)),
        };
        Some(self.with(run))
    }

    fn lea(&self) -> Option<Op> {
        // A segment has no part in it.
        let op = Op { segment: ZERO, ..self.op };
        Some(Op { run: by_width!(self.width, W => moves::lea::<W>), ..op })
    }

    fn push(&self) -> Option<Op> {
        Some(match self.instruction.code() {
            Code::Push_r64 => self.with(moves::push::<Register>),
            Code::Push_rm64 if self.kinds[0] == Some(Kind::Memory) => self.with(moves::push::<Memory>),
            Code::Pushq_imm8 | Code::Pushq_imm32 => self.with(moves::push::<Immediate>),
            _ => return None,
        })
    }

    fn pop(&self) -> Option<Op> {
        (self.instruction.code() == Code::Pop_r64).then(|| self.with(moves::pop))
    }

    fn binary<A: alu::Binary>(&self) -> Option<Op> {
        let run = match (self.kinds[0]?, self.kinds[1]?) {
            (Kind::Register(..), source) => {
                by_source!(source, S => by_width!(self.width, W => alu::to_register::<A, W, S>))
            }
            (Kind::Memory, Kind::Immediate) => {
                by_width!(self.width, W => alu::to_memory::<A, W, Immediate>)
            }
            (Kind::Memory, _) => by_width!(self.width, W => alu::to_memory::<A, W, Register>),
            (Kind::Immediate, _) => return None,
        };
        Some(self.with(run))
    }

    fn unary<A: alu::Unary>(&self) -> Option<Op> {
        Some(self.with(match self.kinds[0]? {
            Kind::Memory => by_width!(self.width, W => alu::unary_memory::<A, W>),
            _ => by_width!(self.width, W => alu::unary_register::<A, W>),
        }))
    }

    /// The count is an immediate or CL.
    fn shift<A: shifts::Shift>(&self) -> Option<Op> {
        Some(self.with(match (self.kinds[0]?, self.kinds[1]?) {
            (Kind::Memory, Kind::Immediate) => {
                by_width!(self.width, W => shifts::shift_memory::<A, W, Immediate>)
            }
            (Kind::Memory, _) => by_width!(self.width, W => shifts::shift_memory::<A, W, Register>),
            (_, Kind::Immediate) => by_width!(self.width, W => shifts::shift_register::<A, W, Immediate>),
            _ => by_width!(self.width, W => shifts::shift_register::<A, W, Register>),
        }))
    }

    fn imul(&self) -> Option<Op> {
        if self.instruction.op_count() == 1 {
            return self.accumulator(|width, kind| {
                by_source!(kind, S => from_dword!(width, W => multiply::imul_accumulator::<W, S>))
            });
        }
        if self.width == Width::Word {
            return None;
        }
        let source = self.kinds[1]?;
        if self.instruction.op_count() == 2 {
            return Some(
                self.with(by_source!(source, S => from_dword!(self.width, W => multiply::imul::<W, S>))),
            );
        }
        let immediate = self.instruction.try_immediate(2).ok()? & self.width.mask();
        let run = by_source!(source, S => from_dword!(self.width, W => multiply::imul_immediate::<W, S>));
        Some(Op { immediate, ..self.with(run) })
    }

    /// An operation of the accumulator, 32 or 64 bits wide, with the one operand.
    fn accumulator(&self, run: impl Fn(Width, Kind) -> Run) -> Option<Op> {
        if !matches!(self.width, Width::Dword | Width::Qword) {
            return None;
        }
        Some(self.with(run(self.width, self.kinds[0]?)))
    }

    fn xchg(&self) -> Option<Op> {
        match (self.kinds[0]?, self.kinds[1]?) {
            (Kind::Register(..), Kind::Register(..)) => {
                Some(self.with(by_width!(self.width, W => moves::xchg::<W>)))
            }
            _ => None,
        }
    }

    fn bit_test(&self) -> Option<Op> {
        match (self.kinds[0]?, self.kinds[1]?) {
            (Kind::Register(..), source @ (Kind::Register(..) | Kind::Immediate)) => {
                Some(self.with(by_source!(source, S => by_width!(self.width, W => alu::bit_test::<W, S>))))
            }
            _ => None,
        }
    }

    /// The condition as instructions encode it.
    fn condition(&self) -> Option<u8> {
        Condition::of(self.instruction.mnemonic()).map(Condition::number)
    }

    /// `SETcc`, `CMOVcc`.
    fn conditional(&self) -> Option<Op> {
        let condition = self.condition()?;
        let run = match (self.kinds[0]?, self.kinds[1]) {
            (Kind::Register(..), None) => by_condition!(condition, C => moves::set_register::<C> as Run),
            (Kind::Memory, None) => by_condition!(condition, C => moves::set_memory::<C> as Run),
            (Kind::Register(..), Some(source)) => by_condition!(condition, C => {
                by_source!(source, S => by_width!(self.width, W => moves::cmov::<C, W, S>))
            }),
            _ => return None,
        };
        Some(self.with(run))
    }
}
