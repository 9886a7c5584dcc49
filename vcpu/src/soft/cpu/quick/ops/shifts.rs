//! Shifts and rotations.

use super::super::flags::Flags;
use super::super::op::{Core, Flow, Op};
use super::super::wide::Wide;
use super::Source;
use crate::soft::cpu::alu::{self, STATUS};

/// What is done with a value and a count, which is masked and not zero.
pub(in super::super) trait Shift {
    fn apply<W: Wide>(flags: &mut Flags, value: u64, count: u32) -> u64;
}

macro_rules! shifts {
    ($($name:ident($flags:ident, $value:ident, $count:ident, $w:ident) => $result:expr;)*) => {$(
        pub(in super::super) struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<$w: Wide>($flags: &mut Flags, $value: u64, $count: u32) -> u64 {
                $result
            }
        }
    )*};
}

shifts! {
    Shl(flags, value, count, W) => {
        // The last bit shifted out: none of those above the top is, if more go out than there are.
        let out = if count > W::BITS { 0 } else { value << (count - 1) >> (W::BITS - 1) & 1 };
        let result = value << count & W::MASK;
        let carry = out != 0;
        flags.shifted::<W>(result, carry, W::WIDTH.sign(result) != carry);
        result
    };
    Shr(flags, value, count, W) => {
        let result = value >> count;
        flags.shifted::<W>(result, value >> (count - 1) & 1 != 0, W::WIDTH.sign(value));
        result
    };
    Sar(flags, value, count, W) => {
        let signed = W::sign_extend(value) as i64;
        let result = (signed >> count) as u64 & W::MASK;
        flags.shifted::<W>(result, signed >> (count - 1) & 1 != 0, false);
        result
    };
    Rol(flags, value, count, W) => rotate::<W>(flags, alu::rol, value, count);
    Ror(flags, value, count, W) => rotate::<W>(flags, alu::ror, value, count);
    Rcl(flags, value, count, W) => rotate::<W>(flags, alu::rcl, value, count);
    Rcr(flags, value, count, W) => rotate::<W>(flags, alu::rcr, value, count);
}

fn rotate<W: Wide>(flags: &mut Flags, rotate: alu::Shift, value: u64, count: u32) -> u64 {
    let before = flags.bits();
    let (result, after) = rotate(W::WIDTH, value, count, before);
    flags.set(before & !STATUS | after & STATUS);
    result
}

/// The count as the processor masks it.
#[inline(always)]
fn masked<W: Wide>(count: u64) -> u32 {
    count as u32 & if W::BITS == 64 { 63 } else { 31 }
}

pub(in super::super) fn shift_register<A: Shift, W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(count) = S::get::<W>(core, op) else { return Flow::Missed };
    let (value, count) = (core.read::<W>(op.target), masked::<W>(count));
    let result = if count == 0 { value } else { A::apply::<W>(&mut core.flags, value, count) };
    core.write::<W>(op.target, result);
    Flow::Next
}

pub(in super::super) fn shift_memory<A: Shift, W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let (Some(value), Some(count)) = (core.load_to_modify::<W>(op), S::get::<W>(core, op)) else {
        return Flow::Missed;
    };
    let count = masked::<W>(count);
    let result = if count == 0 { value } else { A::apply::<W>(&mut core.flags, value, count) };
    core.store::<W>(op, result)
}
