//! Operations of two operands that end in the first, and of one.

use super::super::flags::Flags;
use super::super::op::{Core, Flow, Op};
use super::super::wide::Wide;
use super::Source;

/// What is done with two values; the flags it leaves.
pub(in super::super) trait Binary {
    /// CMP and TEST leave flags alone.
    const WRITES: bool = true;
    fn apply<W: Wide>(flags: &mut Flags, a: u64, b: u64) -> u64;
}

#[inline(always)]
fn sum<W: Wide>(flags: &mut Flags, a: u64, b: u64, carry: bool) -> u64 {
    let sum = a.wrapping_add(b).wrapping_add(carry.into()) & W::MASK;
    flags.arithmetic::<W>(sum, carries_of_sum(a, b, sum));
    sum
}

#[inline(always)]
fn difference<W: Wide>(flags: &mut Flags, a: u64, b: u64, borrow: bool) -> u64 {
    let difference = a.wrapping_sub(b).wrapping_sub(borrow.into()) & W::MASK;
    flags.arithmetic::<W>(difference, borrows_of_difference(a, b, difference));
    difference
}

/// Bit `n` is the carry out of bit `n`.
#[inline(always)]
const fn carries_of_sum(a: u64, b: u64, sum: u64) -> u64 {
    a & b | (a | b) & !sum
}

/// Bit `n` is the borrow into bit `n + 1`.
#[inline(always)]
const fn borrows_of_difference(a: u64, b: u64, difference: u64) -> u64 {
    !a & b | (!a | b) & difference
}

macro_rules! binary {
    ($($name:ident($flags:ident, $a:ident, $b:ident, $w:ident) $(writes $writes:literal)? => $value:expr;)*) => {$(
        pub(in super::super) struct $name;
        impl Binary for $name {
            $(const WRITES: bool = $writes;)?
            #[inline(always)]
            fn apply<$w: Wide>($flags: &mut Flags, $a: u64, $b: u64) -> u64 {
                $value
            }
        }
    )*};
}

#[inline(always)]
fn logic<W: Wide>(flags: &mut Flags, result: u64) -> u64 {
    flags.logic::<W>(result);
    result
}

binary! {
    Add(flags, a, b, W) => sum::<W>(flags, a, b, false);
    Adc(flags, a, b, W) => sum::<W>(flags, a, b, flags.carry());
    Sub(flags, a, b, W) => difference::<W>(flags, a, b, false);
    Sbb(flags, a, b, W) => difference::<W>(flags, a, b, flags.carry());
    Cmp(flags, a, b, W) writes false => difference::<W>(flags, a, b, false);
    And(flags, a, b, W) => logic::<W>(flags, a & b);
    Or(flags, a, b, W) => logic::<W>(flags, a | b);
    Xor(flags, a, b, W) => logic::<W>(flags, a ^ b);
    Test(flags, a, b, W) writes false => logic::<W>(flags, a & b);
}

pub(in super::super) fn to_register<A: Binary, W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(b) = S::get::<W>(core, op) else { return Flow::Missed };
    let a = core.read::<W>(op.target);
    let result = A::apply::<W>(&mut core.flags, a, b);
    if A::WRITES {
        core.write::<W>(op.target, result);
    }
    Flow::Next
}

pub(in super::super) fn to_memory<A: Binary, W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let a = if A::WRITES { core.load_to_modify::<W>(op) } else { core.load::<W>(op) };
    let (Some(a), Some(b)) = (a, S::get::<W>(core, op)) else { return Flow::Missed };
    let result = A::apply::<W>(&mut core.flags, a, b);
    if A::WRITES { core.store::<W>(op, result) } else { Flow::Next }
}

/// What is done with one value.
pub(in super::super) trait Unary {
    fn apply<W: Wide>(flags: &mut Flags, a: u64) -> u64;
}

pub(in super::super) struct Inc;
pub(in super::super) struct Dec;
pub(in super::super) struct Neg;
pub(in super::super) struct Not;

impl Unary for Inc {
    #[inline(always)]
    fn apply<W: Wide>(flags: &mut Flags, a: u64) -> u64 {
        let sum = a.wrapping_add(1) & W::MASK;
        flags.counted::<W>(sum, carries_of_sum(a, 1, sum));
        sum
    }
}

impl Unary for Dec {
    #[inline(always)]
    fn apply<W: Wide>(flags: &mut Flags, a: u64) -> u64 {
        let difference = a.wrapping_sub(1) & W::MASK;
        flags.counted::<W>(difference, borrows_of_difference(a, 1, difference));
        difference
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn apply<W: Wide>(flags: &mut Flags, a: u64) -> u64 {
        difference::<W>(flags, 0, a, false)
    }
}

impl Unary for Not {
    #[inline(always)]
    fn apply<W: Wide>(_flags: &mut Flags, a: u64) -> u64 {
        !a & W::MASK
    }
}

pub(in super::super) fn unary_register<A: Unary, W: Wide>(core: &mut Core, op: &Op) -> Flow {
    let a = core.read::<W>(op.target);
    let result = A::apply::<W>(&mut core.flags, a);
    core.write::<W>(op.target, result);
    Flow::Next
}

pub(in super::super) fn unary_memory<A: Unary, W: Wide>(core: &mut Core, op: &Op) -> Flow {
    let Some(a) = core.load_to_modify::<W>(op) else { return Flow::Missed };
    let result = A::apply::<W>(&mut core.flags, a);
    core.store::<W>(op, result)
}

/// `BT` of a register: CF is the bit.
pub(in super::super) fn bit_test<W: Wide, S: Source>(core: &mut Core, op: &Op) -> Flow {
    let Some(number) = S::get::<W>(core, op) else { return Flow::Missed };
    let bit = core.read::<W>(op.target) >> (number & u64::from(W::BITS - 1)) & 1;
    let flags = core.flags.bits();
    core.flags.set(flags & !crate::rflags::CF | bit);
    Flow::Next
}
