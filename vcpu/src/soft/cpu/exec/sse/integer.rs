//! Arithmetic and logic of integers in lanes.

use iced_x86::Mnemonic as M;

use super::Combine;
use super::lanes::{build, compare, lane, map, zip};

/// The operation of a mnemonic on destination and source. Of a shift, the source is the count.
pub(super) fn operation(mnemonic: M) -> Option<Combine> {
    let operation: Combine = match mnemonic {
        M::Paddb => |a, b| zip(a, b, u8::wrapping_add),
        M::Paddw => |a, b| zip(a, b, u16::wrapping_add),
        M::Paddd => |a, b| zip(a, b, u32::wrapping_add),
        M::Paddq => |a, b| zip(a, b, u64::wrapping_add),
        M::Paddsb => |a, b| zip(a, b, i8::saturating_add),
        M::Paddsw => |a, b| zip(a, b, i16::saturating_add),
        M::Paddusb => |a, b| zip(a, b, u8::saturating_add),
        M::Paddusw => |a, b| zip(a, b, u16::saturating_add),
        M::Psubb => |a, b| zip(a, b, u8::wrapping_sub),
        M::Psubw => |a, b| zip(a, b, u16::wrapping_sub),
        M::Psubd => |a, b| zip(a, b, u32::wrapping_sub),
        M::Psubq => |a, b| zip(a, b, u64::wrapping_sub),
        M::Psubsb => |a, b| zip(a, b, i8::saturating_sub),
        M::Psubsw => |a, b| zip(a, b, i16::saturating_sub),
        M::Psubusb => |a, b| zip(a, b, u8::saturating_sub),
        M::Psubusw => |a, b| zip(a, b, u16::saturating_sub),

        M::Pmullw => |a, b| zip(a, b, u16::wrapping_mul),
        M::Pmulhw => |a, b| zip(a, b, |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16),
        M::Pmulhuw => |a, b| zip(a, b, |a: u16, b: u16| ((u32::from(a) * u32::from(b)) >> 16) as u16),
        M::Pmuludq => |a, b| zip(a, b, |a: u64, b: u64| u64::from(a as u32) * u64::from(b as u32)),
        M::Pmaddwd => multiply_and_add,
        M::Psadbw => sum_of_differences,
        M::Pavgb => |a, b| zip(a, b, |a: u8, b: u8| (u16::from(a) + u16::from(b)).div_ceil(2) as u8),
        M::Pavgw => |a, b| zip(a, b, |a: u16, b: u16| (u32::from(a) + u32::from(b)).div_ceil(2) as u16),
        M::Pminub => |a, b| zip(a, b, u8::min),
        M::Pminsw => |a, b| zip(a, b, i16::min),
        M::Pmaxub => |a, b| zip(a, b, u8::max),
        M::Pmaxsw => |a, b| zip(a, b, i16::max),
        M::Pcmpeqb => |a, b| compare(a, b, u8::eq),
        M::Pcmpeqw => |a, b| compare(a, b, u16::eq),
        M::Pcmpeqd => |a, b| compare(a, b, u32::eq),
        M::Pcmpgtb => |a, b| compare(a, b, i8::gt),
        M::Pcmpgtw => |a, b| compare(a, b, i16::gt),
        M::Pcmpgtd => |a, b| compare(a, b, i32::gt),

        M::Pand | M::Andps | M::Andpd => |a, b| a & b,
        M::Pandn | M::Andnps | M::Andnpd => |a, b| !a & b,
        M::Por | M::Orps | M::Orpd => |a, b| a | b,
        M::Pxor | M::Xorps | M::Xorpd => |a, b| a ^ b,

        M::Psllw => |a, b| map(a, |lane: u16| lane.checked_shl(count(b)).unwrap_or(0)),
        M::Pslld => |a, b| map(a, |lane: u32| lane.checked_shl(count(b)).unwrap_or(0)),
        M::Psllq => |a, b| map(a, |lane: u64| lane.checked_shl(count(b)).unwrap_or(0)),
        M::Psrlw => |a, b| map(a, |lane: u16| lane.checked_shr(count(b)).unwrap_or(0)),
        M::Psrld => |a, b| map(a, |lane: u32| lane.checked_shr(count(b)).unwrap_or(0)),
        M::Psrlq => |a, b| map(a, |lane: u64| lane.checked_shr(count(b)).unwrap_or(0)),
        M::Psraw => |a, b| map(a, |lane: i16| lane >> count(b).min(15)),
        M::Psrad => |a, b| map(a, |lane: i32| lane >> count(b).min(31)),
        // These count bytes.
        M::Pslldq => |a, b| a.checked_shl(8 * count(b)).unwrap_or(0),
        M::Psrldq => |a, b| a.checked_shr(8 * count(b)).unwrap_or(0),
        _ => return None,
    };
    Some(operation)
}

/// The count of a shift: 64 bits, of which all that is past any lane is the same.
fn count(source: u128) -> u32 {
    (source as u64).min(128) as u32
}

/// `PMADDWD`: the sum of the products of two words each. It overflows only for four times -0x8000.
fn multiply_and_add(a: u128, b: u128) -> u128 {
    let product = |i| i32::from(lane::<i16>(a, i)) * i32::from(lane::<i16>(b, i));
    build(|i| product(2 * i).wrapping_add(product(2 * i + 1)))
}

/// `PSADBW`: how far eight bytes are from eight others.
fn sum_of_differences(a: u128, b: u128) -> u128 {
    let difference = |i| u64::from(lane::<u8>(a, i).abs_diff(lane(b, i)));
    build(|i| (8 * i..8 * i + 8).map(difference).sum::<u64>())
}
