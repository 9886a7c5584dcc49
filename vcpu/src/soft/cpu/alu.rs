//! Integer arithmetic and the flags it leaves: pure functions of width, operands and incoming flags.
//!
//! Operands are zero-extended to 64 bits and below `1 << width.bits()`; so are results. Where the SDM
//! calls a flag undefined, it gets whatever the formula of the defined case gives.

use crate::rflags::{AF, CF, OF, PF, SF, ZF};

/// The status flags: what arithmetic writes.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// The size of an integer operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    Byte,
    Word,
    Dword,
    Qword,
}

impl Width {
    #[cfg(test)]
    pub const ALL: [Self; 4] = [Self::Byte, Self::Word, Self::Dword, Self::Qword];

    pub const fn bytes(self) -> usize {
        1 << self as usize
    }

    pub const fn bits(self) -> u32 {
        8 << self as u32
    }

    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// Whether the top bit of `value` is set.
    pub const fn sign(self, value: u64) -> bool {
        value >> (self.bits() - 1) & 1 != 0
    }

    /// `value` with its sign copied into all higher bits.
    pub const fn sign_extend(self, value: u64) -> u64 {
        let unused = 64 - self.bits();
        ((value << unused) as i64 >> unused) as u64
    }
}

/// `flag` if `on`, else nothing.
pub const fn flag(flag: u64, on: bool) -> u64 {
    if on { flag } else { 0 }
}

/// SF, ZF and PF of a result.
pub fn sign_zero_parity(width: Width, result: u64) -> u64 {
    flag(SF, width.sign(result))
        | flag(ZF, result == 0)
        | flag(PF, (result as u8).count_ones().is_multiple_of(2))
}

/// A result and the status flags it leaves.
pub type WithFlags = (u64, u64);

/// A two-operand operation: width, destination, source, carry in.
pub type Binary = fn(Width, u64, u64, bool) -> WithFlags;

pub fn adc(width: Width, a: u64, b: u64, carry: bool) -> WithFlags {
    let sum = a.wrapping_add(b).wrapping_add(u64::from(carry)) & width.mask();
    // Bit i is the carry out of bit i.
    let carries = (a & b) | ((a | b) & !sum);
    let overflow = (a ^ sum) & (b ^ sum);
    (sum, add_flags(width, sum, carries, overflow))
}

pub fn add(width: Width, a: u64, b: u64, _carry: bool) -> WithFlags {
    adc(width, a, b, false)
}

pub fn sbb(width: Width, a: u64, b: u64, borrow: bool) -> WithFlags {
    let difference = a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & width.mask();
    // Bit i is the borrow into bit i + 1.
    let borrows = (!a & b) | ((!a | b) & difference);
    let overflow = (a ^ b) & (a ^ difference);
    (difference, add_flags(width, difference, borrows, overflow))
}

pub fn sub(width: Width, a: u64, b: u64, _borrow: bool) -> WithFlags {
    sbb(width, a, b, false)
}

fn add_flags(width: Width, result: u64, carries: u64, overflow: u64) -> u64 {
    sign_zero_parity(width, result)
        | flag(CF, width.sign(carries))
        | flag(AF, carries & 8 != 0)
        | flag(OF, width.sign(overflow))
}

pub fn and(width: Width, a: u64, b: u64, _carry: bool) -> WithFlags {
    (a & b, sign_zero_parity(width, a & b))
}

pub fn or(width: Width, a: u64, b: u64, _carry: bool) -> WithFlags {
    (a | b, sign_zero_parity(width, a | b))
}

pub fn xor(width: Width, a: u64, b: u64, _carry: bool) -> WithFlags {
    (a ^ b, sign_zero_parity(width, a ^ b))
}

/// A shift or rotation: width, value, count already masked to 5 or 6 bits, flags before. The flags
/// returned are the status flags after; a count of zero changes none.
pub type Shift = fn(Width, u64, u32, u64) -> WithFlags;

pub fn shl(width: Width, value: u64, count: u32, flags: u64) -> WithFlags {
    if count == 0 {
        return (value, flags);
    }
    let wide = u128::from(value) << count;
    let result = wide as u64 & width.mask();
    let carry = wide >> width.bits() & 1 != 0;
    (result, shift_flags(width, result, carry, width.sign(result) != carry))
}

pub fn shr(width: Width, value: u64, count: u32, flags: u64) -> WithFlags {
    if count == 0 {
        return (value, flags);
    }
    let result = value >> count;
    (result, shift_flags(width, result, value >> (count - 1) & 1 != 0, width.sign(value)))
}

pub fn sar(width: Width, value: u64, count: u32, flags: u64) -> WithFlags {
    if count == 0 {
        return (value, flags);
    }
    let signed = width.sign_extend(value) as i64;
    let result = (signed >> count) as u64 & width.mask();
    (result, shift_flags(width, result, signed >> (count - 1) & 1 != 0, false))
}

fn shift_flags(width: Width, result: u64, carry: bool, overflow: bool) -> u64 {
    sign_zero_parity(width, result) | flag(CF, carry) | flag(OF, overflow)
}

pub fn rol(width: Width, value: u64, count: u32, flags: u64) -> WithFlags {
    let result = rotate_left(width.bits(), value.into(), count) as u64;
    let carry = result & 1 != 0;
    (result, rotate_flags(count, flags, carry, width.sign(result) != carry))
}

pub fn ror(width: Width, value: u64, count: u32, flags: u64) -> WithFlags {
    let bits = width.bits();
    let result = rotate_left(bits, value.into(), bits - count % bits) as u64;
    let carry = width.sign(result);
    (result, rotate_flags(count, flags, carry, carry != width.sign(result << 1 & width.mask())))
}

/// Rotation through the carry: of `width.bits() + 1` bits, the carry on top.
pub fn rcl(width: Width, value: u64, count: u32, flags: u64) -> WithFlags {
    let bits = width.bits();
    let wide = u128::from(flags & CF) << bits | u128::from(value);
    let wide = rotate_left(bits + 1, wide, count);
    let result = wide as u64 & width.mask();
    let carry = wide >> bits & 1 != 0;
    (result, rotate_flags(count, flags, carry, width.sign(result) != carry))
}

pub fn rcr(width: Width, value: u64, count: u32, flags: u64) -> WithFlags {
    let bits = width.bits();
    let wide = u128::from(flags & CF) << bits | u128::from(value);
    let wide = rotate_left(bits + 1, wide, bits + 1 - count % (bits + 1));
    let result = wide as u64 & width.mask();
    let overflow = width.sign(result) != width.sign(result << 1 & width.mask());
    (result, rotate_flags(count, flags, wide >> bits & 1 != 0, overflow))
}

fn rotate_left(bits: u32, value: u128, count: u32) -> u128 {
    let count = count % bits;
    (value << count | value >> (bits - count)) & ((1 << bits) - 1)
}

fn rotate_flags(count: u32, flags: u64, carry: bool, overflow: bool) -> u64 {
    if count == 0 { flags } else { flags & !(CF | OF) | flag(CF, carry) | flag(OF, overflow) }
}

/// A shift of two operands: width, value, what fills it, masked count, flags before.
pub type DoubleShift = fn(Width, u64, u64, u32, u64) -> WithFlags;

/// `SHLD`: `value` shifted left, filled from the top of `fill`. A count above 16 of a word is undefined
/// in the SDM; here, as on Intel's processors, the bits of `value` follow those of `fill`.
pub fn shld(width: Width, value: u64, fill: u64, count: u32, flags: u64) -> WithFlags {
    let bits = width.bits();
    if count == 0 {
        return (value, flags);
    }
    if count > bits {
        return shld(width, fill, value, count - bits, flags);
    }
    let wide = (u128::from(value) << bits | u128::from(fill)) << count;
    let result = (wide >> bits) as u64 & width.mask();
    let overflow = width.sign(result) != width.sign(value);
    (result, shift_flags(width, result, value >> (bits - count) & 1 != 0, overflow))
}

/// `SHRD`: `value` shifted right, filled from the bottom of `fill`.
pub fn shrd(width: Width, value: u64, fill: u64, count: u32, flags: u64) -> WithFlags {
    let bits = width.bits();
    if count == 0 {
        return (value, flags);
    }
    if count > bits {
        return shrd(width, fill, value, count - bits, flags);
    }
    let wide = u128::from(fill) << bits | u128::from(value);
    let result = (wide >> count) as u64 & width.mask();
    let overflow = width.sign(result) != width.sign(value);
    (result, shift_flags(width, result, value >> (count - 1) & 1 != 0, overflow))
}

/// A multiplication: width and factors.
pub type Multiply = fn(Width, u64, u64) -> (u64, u64, bool);

/// The double-width unsigned product as (low, high), and whether the high half matters.
pub fn mul(width: Width, a: u64, b: u64) -> (u64, u64, bool) {
    let product = u128::from(a) * u128::from(b);
    let high = (product >> width.bits()) as u64;
    (product as u64 & width.mask(), high, high != 0)
}

/// The double-width signed product as (low, high), and whether the low half alone would be wrong.
pub fn imul(width: Width, a: u64, b: u64) -> (u64, u64, bool) {
    let signed = |value| i128::from(width.sign_extend(value) as i64);
    let product = signed(a) * signed(b);
    let low = product as u64 & width.mask();
    (low, (product >> width.bits()) as u64 & width.mask(), signed(low) != product)
}

/// A division: width, high and low half of the dividend, divisor.
pub type Divide = fn(Width, u64, u64, u64) -> Option<(u64, u64)>;

/// Quotient and remainder of `high:low / divisor`; `None` is #DE.
pub fn div(width: Width, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let dividend = u128::from(high) << width.bits() | u128::from(low);
    let quotient = dividend.checked_div(divisor.into())?;
    let quotient = u64::try_from(quotient).ok().filter(|&quotient| quotient <= width.mask())?;
    Some((quotient, (dividend % u128::from(divisor)) as u64))
}

/// The same, signed.
pub fn idiv(width: Width, high: u64, low: u64, divisor: u64) -> Option<(u64, u64)> {
    let dividend = i128::from(width.sign_extend(high) as i64) << width.bits() | i128::from(low);
    let divisor = i128::from(width.sign_extend(divisor) as i64);
    let (quotient, remainder) = (dividend.checked_div(divisor)?, dividend.checked_rem(divisor)?);
    let low = quotient as u64 & width.mask();
    (i128::from(width.sign_extend(low) as i64) == quotient).then_some((low, remainder as u64 & width.mask()))
}
