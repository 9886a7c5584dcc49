//! One step of a transfer through a device's callbacks: checked, cut or widened, its bytes put in order.

use crate::access::nesting;
use crate::{AccessRules, Endianness, MemTxAttrs, MemTxError, MmioOps};

/// The widest step.
const WIDEST: usize = 8;

/// Reads the first step of a transfer of `buf` from `offset` on. Gives its length; what could not be read is 0.
pub(super) fn read(
    ops: &dyn MmioOps,
    offset: u64,
    buf: &mut [u8],
    attrs: MemTxAttrs,
) -> (usize, Result<(), MemTxError>) {
    let rules = ops.rules();
    let size = rules.transfer_step(offset, buf.len());
    let buf = &mut buf[..size.into()];
    buf.fill(0);
    (size.into(), read_step(ops, &rules, offset, buf, attrs))
}

fn read_step(
    ops: &dyn MmioOps,
    rules: &AccessRules,
    offset: u64,
    buf: &mut [u8],
    attrs: MemTxAttrs,
) -> Result<(), MemTxError> {
    let _inside = begin(ops, rules, offset, buf.len() as u8, false, attrs)?;
    let width = rules.callback_width(buf.len() as u8);
    let mut outcome = Ok(());
    for (at, piece) in pieces(offset, width).zip(buf.chunks_mut(width.into())) {
        match ops.read(at, width, attrs) {
            Ok(value) => piece.copy_from_slice(&to_bytes(value, width, rules.endianness)[..piece.len()]),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome
}

/// Writes the first step of a transfer of `data` to `offset`, and gives its length.
pub(super) fn write(
    ops: &dyn MmioOps,
    offset: u64,
    data: &[u8],
    attrs: MemTxAttrs,
) -> (usize, Result<(), MemTxError>) {
    let rules = ops.rules();
    let size = rules.transfer_step(offset, data.len());
    (size.into(), write_step(ops, &rules, offset, &data[..size.into()], attrs))
}

fn write_step(
    ops: &dyn MmioOps,
    rules: &AccessRules,
    offset: u64,
    data: &[u8],
    attrs: MemTxAttrs,
) -> Result<(), MemTxError> {
    let _inside = begin(ops, rules, offset, data.len() as u8, true, attrs)?;
    let width = rules.callback_width(data.len() as u8);
    let mut outcome = Ok(());
    for (at, piece) in pieces(offset, width).zip(data.chunks(width.into())) {
        outcome = outcome.and(ops.write(at, width, from_bytes(piece, width, rules.endianness), attrs));
    }
    outcome
}

/// Rule R33, in its order, then rule R37.
fn begin(
    ops: &dyn MmioOps,
    rules: &AccessRules,
    offset: u64,
    size: u8,
    write: bool,
    attrs: MemTxAttrs,
) -> Result<nesting::Inside, MemTxError> {
    if !ops.accepts(offset, size, write, attrs) || !rules.permit(offset, size) {
        return Err(MemTxError::Decode);
    }
    nesting::enter(ops, rules.reentry)
}

/// The offsets of the callbacks. They wrap in a device that reaches to 2^64: an access may go past its end.
fn pieces(offset: u64, width: u8) -> impl Iterator<Item = u64> {
    (0..).map(move |index| offset.wrapping_add(index * u64::from(width)))
}

/// A callback's number as bytes in the order of addresses.
fn to_bytes(value: u64, width: u8, endianness: Endianness) -> [u8; WIDEST] {
    match endianness {
        Endianness::Little => value.to_le_bytes(),
        Endianness::Big => (value << unused_bits(width)).to_be_bytes(),
    }
}

/// The number of a callback from bytes in the order of addresses; bytes that the access does not have are 0.
fn from_bytes(data: &[u8], width: u8, endianness: Endianness) -> u64 {
    let mut bytes = [0; WIDEST];
    bytes[..data.len()].copy_from_slice(data);
    match endianness {
        Endianness::Little => u64::from_le_bytes(bytes),
        Endianness::Big => u64::from_be_bytes(bytes) >> unused_bits(width),
    }
}

fn unused_bits(width: u8) -> u32 {
    64 - 8 * u32::from(width)
}
