//! What instructions do, compiled for each size and shape of operands.

pub(super) mod alu;
pub(super) mod branches;
pub(super) mod moves;
pub(super) mod multiply;
pub(super) mod shifts;

use super::op::{Core, Op};
use super::wide::Wide;

/// Where a value that is only read comes from.
pub(super) trait Source {
    /// Zero-extended; `None` if its page is not at hand.
    fn get<W: Wide>(core: &mut Core, op: &Op) -> Option<u64>;
}

pub(super) struct Register;
pub(super) struct Immediate;
pub(super) struct Memory;

impl Source for Register {
    #[inline(always)]
    fn get<W: Wide>(core: &mut Core, op: &Op) -> Option<u64> {
        Some(core.read::<W>(op.source))
    }
}

impl Source for Immediate {
    #[inline(always)]
    fn get<W: Wide>(_core: &mut Core, op: &Op) -> Option<u64> {
        Some(op.immediate)
    }
}

impl Source for Memory {
    #[inline(always)]
    fn get<W: Wide>(core: &mut Core, op: &Op) -> Option<u64> {
        core.load::<W>(op)
    }
}
