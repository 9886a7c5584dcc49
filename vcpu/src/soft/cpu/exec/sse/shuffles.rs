//! Lanes that change their places or their width.

use iced_x86::Mnemonic as M;

use super::lanes::{Lane, build, lane};
use super::{Combine, Select};

/// The operation of a mnemonic on destination and source.
pub(super) fn operation(mnemonic: M) -> Option<Combine> {
    let operation: Combine = match mnemonic {
        M::Punpcklbw => |a, b| interleave::<u8>(a, b, 0),
        M::Punpcklwd => |a, b| interleave::<u16>(a, b, 0),
        M::Punpckldq | M::Unpcklps => |a, b| interleave::<u32>(a, b, 0),
        M::Punpcklqdq | M::Unpcklpd => |a, b| interleave::<u64>(a, b, 0),
        M::Punpckhbw => |a, b| interleave::<u8>(a, b, 8),
        M::Punpckhwd => |a, b| interleave::<u16>(a, b, 4),
        M::Punpckhdq | M::Unpckhps => |a, b| interleave::<u32>(a, b, 2),
        M::Punpckhqdq | M::Unpckhpd => |a, b| interleave::<u64>(a, b, 1),
        M::Packsswb => |a, b| narrow(a, b, |word: i16| word.clamp(i8::MIN.into(), i8::MAX.into()) as i8),
        M::Packuswb => |a, b| narrow(a, b, |word: i16| word.clamp(0, u8::MAX.into()) as u8),
        M::Packssdw => |a, b| narrow(a, b, |dword: i32| dword.clamp(i16::MIN.into(), i16::MAX.into()) as i16),
        _ => return None,
    };
    Some(operation)
}

/// The operation of a mnemonic on destination, source and an immediate that selects lanes.
pub(super) fn selection(mnemonic: M) -> Option<Select> {
    let operation: Select = match mnemonic {
        M::Pshufd => |_, b, order| build(|i| lane::<u32>(b, place(order, i))),
        M::Pshuflw => |_, b, order| build(|i| lane::<u16>(b, if i < 4 { place(order, i) } else { i })),
        M::Pshufhw => {
            |_, b, order| build(|i| lane::<u16>(b, if i < 4 { i } else { 4 + place(order, i - 4) }))
        }
        M::Shufps => |a, b, order| build(|i| lane::<u32>(if i < 2 { a } else { b }, place(order, i))),
        M::Shufpd => {
            |a, b, order| build(|i| lane::<u64>(if i < 1 { a } else { b }, usize::from(order >> i & 1)))
        }
        M::Pinsrw => |a, b, at| build(|i| if i == word(at) { b as u16 } else { lane(a, i) }),
        M::Pextrw => |_, b, at| lane::<u16>(b, word(at)).into(),
        _ => return None,
    };
    Some(operation)
}

/// Which of four lanes comes to place `i`.
fn place(order: u8, i: usize) -> usize {
    usize::from(order >> (2 * i) & 3)
}

fn word(at: u8) -> usize {
    usize::from(at & 7)
}

/// Half the lanes of `a`, from `first` on, each followed by that of `b`.
fn interleave<T: Lane>(a: u128, b: u128, first: usize) -> u128 {
    build(|i| lane::<T>(if i % 2 == 0 { a } else { b }, first + i / 2))
}

/// The lanes of `a` and then those of `b`, half as wide.
fn narrow<From: Lane, To: Lane>(a: u128, b: u128, saturate: impl Fn(From) -> To) -> u128 {
    build(|i| saturate(lane(if i < From::COUNT { a } else { b }, i % From::COUNT)))
}
