//! Products and quotients. Their flags are worked out at once: ZF does not follow from the result.

use super::super::op::{Core, Flow, Op};
use super::super::wide::Wide;
use super::Source;
use crate::soft::cpu::alu::{self, Divide, Multiply, STATUS};
use crate::{Gpr, rflags};

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;

/// As the exact interpreter leaves them.
#[inline(always)]
fn flags<W: Wide>(core: &mut Core, low: u64, overflow: bool) {
    let carry = alu::flag(rflags::CF | rflags::OF, overflow);
    let others = alu::sign_zero_parity(W::WIDTH, low) & !rflags::ZF;
    let before = core.flags.bits();
    core.flags.set(before & !STATUS | carry | others);
}

/// `IMUL` of a register by another operand.
pub(in super::super) fn imul<W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(b) = S::get::<W>(core, op) else { return Flow::Missed };
    product::<W>(core, op, core.read::<W>(op.target), b)
}

/// `IMUL` of an operand by an immediate.
pub(in super::super) fn imul_immediate<W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(a) = S::get::<W>(core, op) else { return Flow::Missed };
    product::<W>(core, op, a, op.immediate)
}

#[inline(always)]
fn product<W: Wide>(core: &mut Core, op: &Op, a: u64, b: u64) -> Flow {
    let (low, _, overflow) = alu::imul(W::WIDTH, a, b);
    core.write::<W>(op.target, low);
    flags::<W>(core, low, overflow);
    Flow::Next
}

/// `MUL` and `IMUL` of the accumulator, from 32 bits on.
#[inline(always)]
fn multiply<W: Wide, S: Source>(core: &mut Core, op: &Op, operation: Multiply) -> Flow {
    let Some(factor) = S::get::<W>(core, op) else { return Flow::Missed };
    let (low, high, overflow) = operation(W::WIDTH, core.read::<W>(RAX), factor);
    core.write::<W>(RAX, low);
    core.write::<W>(RDX, high);
    flags::<W>(core, low, overflow);
    Flow::Next
}

pub(in super::super) fn mul_accumulator<W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    multiply::<W, S>(core, op, alu::mul)
}

pub(in super::super) fn imul_accumulator<W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    multiply::<W, S>(core, op, alu::imul)
}

/// `DIV` and `IDIV` of the accumulator, from 32 bits on; a quotient that does not fit is the exact interpreter's.
#[inline(always)]
fn divide<W: Wide, S: Source>(core: &mut Core, op: &Op, operation: Divide) -> Flow {
    let Some(divisor) = S::get::<W>(core, op) else { return Flow::Missed };
    let (high, low) = (core.read::<W>(RDX), core.read::<W>(RAX));
    let Some((quotient, remainder)) = operation(W::WIDTH, high, low, divisor) else { return Flow::Missed };
    core.write::<W>(RAX, quotient);
    core.write::<W>(RDX, remainder);
    Flow::Next
}

pub(in super::super) fn div<W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    divide::<W, S>(core, op, alu::div)
}

pub(in super::super) fn idiv<W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    divide::<W, S>(core, op, alu::idiv)
}
