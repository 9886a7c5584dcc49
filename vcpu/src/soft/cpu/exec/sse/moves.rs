//! Vectors, and parts of them, between registers and memory.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::Combine;
use super::lanes::{Lane, lane};

const LOW_DWORD: u128 = u32::MAX as u128;
const LOW_QWORD: u128 = u64::MAX as u128;

/// What a move makes of destination and source. Of memory, the source is as long as the operand and followed by zeros;
/// as a destination it takes what fits.
pub(super) fn operation(instruction: &Instruction) -> Option<Combine> {
    let to_memory = instruction.op0_kind() == OpKind::Memory;
    let between_registers = !to_memory && instruction.op1_kind() != OpKind::Memory;
    let operation: Combine = match instruction.mnemonic() {
        M::Movss if between_registers => |a, b| a & !LOW_DWORD | b & LOW_DWORD,
        M::Movsd if between_registers => |a, b| a & !LOW_QWORD | b & LOW_QWORD,
        M::Movaps | M::Movapd | M::Movdqa | M::Movups | M::Movupd | M::Movdqu => |_, b| b,
        M::Movntps | M::Movntpd | M::Movntdq | M::Movd | M::Movss | M::Movsd => |_, b| b,
        M::Movq => |_, b| b & LOW_QWORD,
        M::Movlps | M::Movlpd if to_memory => |_, b| b,
        M::Movlps | M::Movlpd => |a, b| a & !LOW_QWORD | b,
        M::Movhps | M::Movhpd if to_memory => |_, b| b >> 64,
        M::Movhps | M::Movhpd | M::Movlhps => |a, b| a & LOW_QWORD | b << 64,
        M::Movhlps => |a, b| a & !LOW_QWORD | b >> 64,
        M::Pmovmskb => |_, b| signs::<u8>(b),
        M::Movmskps => |_, b| signs::<u32>(b),
        M::Movmskpd => |_, b| signs::<u64>(b),
        _ => return None,
    };
    Some(operation)
}

/// Whether its 16 bytes of memory may lie anywhere.
pub(super) fn is_unaligned(mnemonic: M) -> bool {
    matches!(mnemonic, M::Movups | M::Movupd | M::Movdqu)
}

/// The highest bit of each lane.
fn signs<T: Lane>(vector: u128) -> u128 {
    let bits = 128 / T::COUNT;
    (0..T::COUNT).map(|i| lane::<T>(vector, i).widen() >> (bits - 1) << i).sum()
}
