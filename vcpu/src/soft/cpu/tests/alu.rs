//! Arithmetic against an oracle that goes bit by bit, as one would by hand.

use proptest::prelude::*;

use super::super::alu::{self, STATUS, Width};
use crate::rflags::{AF, CF, OF, PF, SF, ZF};

type Bits = Vec<bool>;

fn bits(width: Width, value: u64) -> Bits {
    (0..width.bits()).map(|i| value >> i & 1 == 1).collect()
}

fn number(bits: &[bool]) -> u64 {
    bits.iter().enumerate().map(|(i, &bit)| u64::from(bit) << i).sum()
}

fn set(pairs: &[(u64, bool)]) -> u64 {
    pairs.iter().filter(|(_, on)| *on).map(|(flag, _)| flag).sum()
}

fn result_flags(result: &[bool]) -> u64 {
    let parity = result[..8].iter().filter(|&&bit| bit).count() % 2 == 0;
    set(&[(SF, *result.last().unwrap()), (ZF, !result.contains(&true)), (PF, parity)])
}

/// A ripple-carry adder.
fn oracle_add(width: Width, a: u64, b: u64, mut carry: bool) -> (u64, u64) {
    let (a, b) = (bits(width, a), bits(width, b));
    let (mut sum, mut carries) = (Bits::new(), Bits::new());
    for (&x, &y) in a.iter().zip(&b) {
        sum.push(x ^ y ^ carry);
        carry = u8::from(x) + u8::from(y) + u8::from(carry) >= 2;
        carries.push(carry);
    }
    let (sign_a, sign_b, sign) = (a.last(), b.last(), sum.last());
    let flags = set(&[(CF, carry), (AF, carries[3]), (OF, sign_a == sign_b && sign != sign_a)]);
    (number(&sum), flags | result_flags(&sum))
}

/// a - b - borrow = a + !b + !borrow, with both carries turned round.
fn oracle_sub(width: Width, a: u64, b: u64, borrow: bool) -> (u64, u64) {
    let (result, flags) = oracle_add(width, a, !b & width.mask(), !borrow);
    (result, flags ^ CF ^ AF)
}

/// One bit at a time: the new value, and the bit that fell out.
fn step(name: &str, value: &mut Bits, carry: bool) -> bool {
    let (first, last) = (value[0], value[value.len() - 1]);
    let left = matches!(name, "shl" | "rol" | "rcl");
    let filler = match name {
        "rol" => last,
        "ror" => first,
        "rcl" | "rcr" => carry,
        "sar" => last,
        _ => false,
    };
    if left {
        value.insert(0, filler);
        value.pop();
        last
    } else {
        value.remove(0);
        value.push(filler);
        first
    }
}

const SHIFTS: [(&str, alu::Shift); 7] = [
    ("shl", alu::shl),
    ("shr", alu::shr),
    ("sar", alu::sar),
    ("rol", alu::rol),
    ("ror", alu::ror),
    ("rcl", alu::rcl),
    ("rcr", alu::rcr),
];

fn width() -> impl Strategy<Value = Width> {
    prop::sample::select(Width::ALL.to_vec())
}

/// Values at the edges, and any.
fn value() -> impl Strategy<Value = u64> {
    let edge =
        (0u32..64, 0u64..3).prop_map(|(shift, near)| (1u64 << shift).wrapping_add(near).wrapping_sub(1));
    prop_oneof![edge.clone(), edge.prop_map(|value| value.wrapping_neg()), any::<u64>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn sums_and_differences(width in width(), a in value(), b in value(), carry: bool) {
        let (a, b) = (a & width.mask(), b & width.mask());
        prop_assert_eq!(alu::adc(width, a, b, carry), oracle_add(width, a, b, carry));
        prop_assert_eq!(alu::sbb(width, a, b, carry), oracle_sub(width, a, b, carry));
        prop_assert_eq!(alu::add(width, a, b, carry), oracle_add(width, a, b, false));
        prop_assert_eq!(alu::sub(width, a, b, carry), oracle_sub(width, a, b, false));
        prop_assert_eq!(alu::xor(width, a, b, carry), (a ^ b, result_flags(&bits(width, a ^ b))));
    }

    #[test]
    fn shifts_and_rotations(width in width(), value in value(), count in 0u32..64, flags: u64) {
        let count = if width == Width::Qword { count } else { count % 32 };
        let (value, flags) = (value & width.mask(), flags & STATUS);
        for (name, operation) in SHIFTS {
            let mut expected = bits(width, value);
            let mut carry = flags & CF != 0;
            for _ in 0..count {
                carry = step(name, &mut expected, carry);
            }
            let (result, after) = operation(width, value, count, flags);
            prop_assert_eq!(result, number(&expected), "{}", name);
            if count == 0 {
                prop_assert_eq!(after, flags, "{}", name);
                continue;
            }
            prop_assert_eq!(after & CF != 0, carry, "{} CF", name);
            let rotates = name.starts_with('r');
            let others = if rotates { flags & (SF | ZF | PF) } else { result_flags(&expected) };
            prop_assert_eq!(after & (SF | ZF | PF), others, "{}", name);
            if count == 1 {
                // The sign changed; of SAR it can't.
                let overflow = number(&expected) >> (width.bits() - 1) != value >> (width.bits() - 1);
                prop_assert_eq!(after & OF != 0, overflow, "{} OF", name);
            }
        }
    }

    #[test]
    fn double_shifts(width in width(), value in value(), fill in value(), count in 1u32..64) {
        prop_assume!(width != Width::Byte);
        let count = count % width.bits();
        prop_assume!(count != 0);
        let (value, fill) = (value & width.mask(), fill & width.mask());
        let joined = |low, high| [bits(width, low), bits(width, high)].concat();
        let n = width.bits() as usize;
        let (left, flags) = alu::shld(width, value, fill, count, 0);
        let whole = joined(fill, value);
        prop_assert_eq!(left, number(&whole[n - count as usize..2 * n - count as usize]));
        prop_assert_eq!(flags & CF != 0, whole[2 * n - count as usize]);
        let (right, flags) = alu::shrd(width, value, fill, count, 0);
        let whole = joined(value, fill);
        prop_assert_eq!(right, number(&whole[count as usize..count as usize + n]));
        prop_assert_eq!(flags & CF != 0, whole[count as usize - 1]);
    }

    /// Division undoes multiplication, and a quotient that does not fit is refused.
    #[test]
    fn products_and_quotients(width in width(), a in value(), b in value(), rest in value()) {
        let (a, b) = (a & width.mask(), b & width.mask());
        prop_assume!(b != 0);
        let rest = rest % b;
        let (low, high, overflow) = alu::mul(width, a, b);
        prop_assert_eq!(overflow, high != 0);
        let (low, carries) = oracle_add(width, low, rest, false);
        let high = high + u64::from(carries & CF != 0);
        prop_assert_eq!(alu::div(width, high, low, b), Some((a, rest)));
        prop_assert_eq!(alu::div(width, b, low, b), None);
        let (low, high, _) = alu::imul(width, a, b);
        let smallest = a == 1 << (width.bits() - 1) && b == width.mask();
        prop_assert_eq!(alu::idiv(width, high, low, b), Some((a, 0)), "{}", smallest);
        prop_assert_eq!(alu::idiv(width, 0, 0, 0), None);
    }
}
