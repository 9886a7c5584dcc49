//! Data movement and the stack.

use super::super::op::{Core, Flow, Op};
use super::super::wide::{W8, W64, Wide};
use super::Source;
use crate::Gpr;

const RAX: u8 = Gpr::Rax as u8;
const RDX: u8 = Gpr::Rdx as u8;
const RSP: u8 = Gpr::Rsp as u8;
const RBP: u8 = Gpr::Rbp as u8;

pub(in super::super) fn nop(_core: &mut Core, _op: &Op) -> Flow {
    Flow::Next
}

pub(in super::super) fn mov_register<W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(value) = S::get::<W>(core, op) else { return Flow::Missed };
    core.write::<W>(op.target, value);
    Flow::Next
}

pub(in super::super) fn mov_memory<W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(value) = S::get::<W>(core, op) else { return Flow::Missed };
    core.store::<W>(op, value)
}

/// `MOVZX` to 32 or 64 bits.
pub(in super::super) fn movzx<From: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(value) = S::get::<From>(core, op) else { return Flow::Missed };
    core.set(op.target, value);
    Flow::Next
}

/// `MOVSX`, `MOVSXD`.
pub(in super::super) fn movsx<To: Wide, From: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(value) = S::get::<From>(core, op) else { return Flow::Missed };
    core.write::<To>(op.target, From::sign_extend(value) & To::MASK);
    Flow::Next
}

pub(in super::super) fn lea<W: Wide>(core: &mut Core, op: &Op) -> Flow {
    core.write::<W>(op.target, core.effective(op) & W::MASK);
    Flow::Next
}

pub(in super::super) fn xchg<W: Wide>(core: &mut Core, op: &Op) -> Flow {
    let (a, b) = (core.read::<W>(op.target), core.read::<W>(op.source));
    core.write::<W>(op.target, b);
    core.write::<W>(op.source, a);
    Flow::Next
}

pub(in super::super) fn bswap32(core: &mut Core, op: &Op) -> Flow {
    core.set(op.target, (core.get(op.target) as u32).swap_bytes().into());
    Flow::Next
}

pub(in super::super) fn bswap64(core: &mut Core, op: &Op) -> Flow {
    core.set(op.target, core.get(op.target).swap_bytes());
    Flow::Next
}

/// `CWDE`, `CDQE`.
pub(in super::super) fn extend_accumulator<To: Wide, From: Wide>(core: &mut Core, _op: &Op) -> Flow {
    core.write::<To>(RAX, From::sign_extend(core.read::<From>(RAX)) & To::MASK);
    Flow::Next
}

/// `CDQ`, `CQO`.
pub(in super::super) fn sign_into_rdx<W: Wide>(core: &mut Core, _op: &Op) -> Flow {
    let sign = if W::WIDTH.sign(core.read::<W>(RAX)) { W::MASK } else { 0 };
    core.write::<W>(RDX, sign);
    Flow::Next
}

/// Pushes a value; [`Flow::Missed`] changes nothing.
#[inline(always)]
pub(super) fn push_value(core: &mut Core, value: u64) -> Flow {
    let rsp = core.get(RSP).wrapping_sub(8);
    let flow = core.store_at::<W64>(rsp, value);
    if flow != Flow::Missed {
        core.set(RSP, rsp);
    }
    flow
}

pub(in super::super) fn push<S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(value) = S::get::<W64>(core, op) else { return Flow::Missed };
    push_value(core, value)
}

/// `POP` of a register: of RSP, what was popped wins.
pub(in super::super) fn pop(core: &mut Core, op: &Op) -> Flow {
    let rsp = core.get(RSP);
    let Some(value) = core.load_at::<W64>(rsp) else { return Flow::Missed };
    core.set(RSP, rsp.wrapping_add(8));
    core.set(op.target, value);
    Flow::Next
}

pub(in super::super) fn leave(core: &mut Core, _op: &Op) -> Flow {
    let frame = core.get(RBP);
    let Some(value) = core.load_at::<W64>(frame) else { return Flow::Missed };
    core.set(RSP, frame.wrapping_add(8));
    core.set(RBP, value);
    Flow::Next
}

/// `SETcc`.
pub(in super::super) fn set_register<const CODE: u8>(core: &mut Core, op: &Op) -> Flow {
    let value = core.flags.holds::<CODE>().into();
    core.write::<W8>(op.target, value);
    Flow::Next
}

pub(in super::super) fn set_memory<const CODE: u8>(core: &mut Core, op: &Op) -> Flow {
    let value = core.flags.holds::<CODE>().into();
    core.store::<W8>(op, value)
}

/// `CMOVcc`: the source is read, and the upper half of a 32-bit target cleared, in either case.
pub(in super::super) fn cmov<const CODE: u8, W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(value) = S::get::<W>(core, op) else { return Flow::Missed };
    let value = if core.flags.holds::<CODE>() { value } else { core.read::<W>(op.target) };
    core.write::<W>(op.target, value);
    Flow::Next
}
