//! Branches, and what is like them: each ends its block and sets RIP.

use super::super::op::{Core, Flow, Op};
use super::super::wide::W64;
use super::Source;
use super::moves::push_value;
use crate::Gpr;

const RCX: u8 = Gpr::Rcx as u8;
const RSP: u8 = Gpr::Rsp as u8;

/// `Jcc`.
pub(in super::super) fn jump_if<const CODE: u8>(core: &mut Core, op: &Op) -> Flow {
    if core.flags.holds::<CODE>() {
        return core.jump(op.immediate);
    }
    core.rip = core.next(op);
    Flow::Branch
}

pub(in super::super) fn jump<S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(target) = S::get::<W64>(core, op) else { return Flow::Missed };
    core.jump(target)
}

pub(in super::super) fn call<S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(target) = S::get::<W64>(core, op) else { return Flow::Missed };
    let next = core.next(op);
    if !core.is_canonical(target) || push_value(core, next) == Flow::Missed {
        return Flow::Missed;
    }
    core.rip = target;
    Flow::Branch
}

/// `RET`, which also releases as many bytes as the immediate says.
pub(in super::super) fn ret(core: &mut Core, op: &Op) -> Flow {
    let rsp = core.get(RSP);
    let Some(target) = core.load_at::<W64>(rsp) else { return Flow::Missed };
    let flow = core.jump(target);
    if flow == Flow::Branch {
        core.set(RSP, rsp.wrapping_add(8).wrapping_add(op.immediate));
    }
    flow
}

/// `LOOP`, counting in RCX.
pub(in super::super) fn loop_rcx(core: &mut Core, op: &Op) -> Flow {
    let count = core.get(RCX).wrapping_sub(1);
    let target = if count != 0 { op.immediate } else { core.next(op) };
    let flow = core.jump(target);
    if flow == Flow::Branch {
        core.set(RCX, count);
    }
    flow
}

/// `INVLPG`, which ends a block: what follows is fetched anew.
pub(in super::super) fn invlpg(core: &mut Core, op: &Op) -> Flow {
    let address = core.linear(op);
    if !core.privileged || !core.is_canonical(address) {
        return Flow::Missed;
    }
    core.invalid = address;
    core.rip = core.next(op);
    Flow::Invalidated
}

/// `JRCXZ`.
pub(in super::super) fn jump_if_rcx_zero(core: &mut Core, op: &Op) -> Flow {
    let target = if core.get(RCX) == 0 { op.immediate } else { core.next(op) };
    core.jump(target)
}
