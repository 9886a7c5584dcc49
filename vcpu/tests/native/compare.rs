//! What may differ: flags and results that the manuals leave undefined.

use iced_x86::{Code, Mnemonic as M, OpKind, Register, RflagsBits};
use vcpu::{Gpr, rflags};

use crate::case::{Case, End, Outcome};

const STATUS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// Names of flags in the assembler's tables.
const FLAGS: [(u32, u64); 7] = [
    (RflagsBits::OF, rflags::OF),
    (RflagsBits::SF, rflags::SF),
    (RflagsBits::ZF, rflags::ZF),
    (RflagsBits::AF, rflags::AF),
    (RflagsBits::CF, rflags::CF),
    (RflagsBits::PF, rflags::PF),
    (RflagsBits::DF, rflags::DF),
];

/// What is undefined after a case.
struct Undefined {
    flags: u64,
    /// The destination: the first operand.
    result: bool,
}

/// Whether both outcomes are the same but for what is undefined. RF is the business of the saved flags
/// of an exception, not the instruction's.
pub fn agree(case: &Case, processor: &Outcome, soft: &Outcome) -> bool {
    let undefined = match processor.end {
        End::Retired => undefined(case, processor),
        _ => Undefined { flags: 0, result: false },
    };
    let (mut processor, mut soft) = (processor.clone(), soft.clone());
    // Of a frame that can't be finished, processors leave the first words behind, and the soft CPU none.
    let unfinished_frame = case.instruction.mnemonic() == M::Enter && processor.end != End::Retired;
    for outcome in [&mut processor, &mut soft] {
        outcome.regs.rflags &= !(undefined.flags | rflags::RF);
        if unfinished_frame {
            outcome.memory = case.memory.clone();
        }
        if undefined.result {
            forget_result(case, outcome);
        }
    }
    processor == soft
}

fn forget_result(case: &Case, outcome: &mut Outcome) {
    match case.instruction.op0_kind() {
        OpKind::Register => {
            let register = case.instruction.op0_register().full_register();
            outcome.regs.gpr[register as usize - Register::RAX as usize] = 0;
        }
        _ => outcome.memory = case.memory.clone(),
    }
}

fn undefined(case: &Case, processor: &Outcome) -> Undefined {
    let instruction = &case.instruction;
    let by_table = instruction.rflags_undefined();
    let flags = FLAGS.iter().filter(|(bit, _)| by_table & bit != 0).map(|(_, flag)| flag).sum();
    match instruction.mnemonic() {
        M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd => {
            shift(case)
        }
        // "If the source operand is 0, the destination is undefined"; ZF says that it was.
        M::Bsf | M::Bsr => Undefined { flags, result: processor.regs.rflags & rflags::ZF != 0 },
        // "When BSWAP references a 16-bit register, the result is undefined."
        M::Bswap => Undefined { flags, result: case.form == Code::Bswap_r16 },
        _ => Undefined { flags, result: false },
    }
}

/// A count of zero changes no flag, and only a count of one defines OF. What a shift beyond the operand
/// leaves in CF is undefined, for `SHLD` and `SHRD` the result is too.
fn shift(case: &Case) -> Undefined {
    let instruction = &case.instruction;
    let bits = match instruction.op0_kind() {
        OpKind::Register => instruction.op0_register().size() * 8,
        _ => instruction.memory_size().size() * 8,
    };
    let count = match instruction.op_kind(instruction.op_count() - 1) {
        OpKind::Register => case.regs[Gpr::Rcx] as u8,
        _ => instruction.immediate8(),
    };
    let count = usize::from(count) & if bits == 64 { 63 } else { 31 };
    let mnemonic = instruction.mnemonic();
    let rotation = matches!(mnemonic, M::Rol | M::Ror | M::Rcl | M::Rcr);
    let double = matches!(mnemonic, M::Shld | M::Shrd);
    if count == 0 {
        return Undefined { flags: 0, result: false };
    }
    if double && count > bits {
        return Undefined { flags: STATUS, result: true };
    }
    let mut flags = if rotation { 0 } else { rflags::AF };
    if count != 1 {
        flags |= rflags::OF;
    }
    if matches!(mnemonic, M::Shl | M::Sal | M::Shr) && count >= bits {
        flags |= rflags::CF;
    }
    Undefined { flags, result: false }
}

/// Whether a case of this form may end so. Cases are drawn to reach memory: an exception that has nothing
/// to do with the form means that the drawing is wrong.
pub fn is_expected(case: &Case, end: &End) -> bool {
    let End::Exception(vector) = end else { return true };
    match (vector, case.instruction.mnemonic()) {
        (0, M::Div | M::Idiv) | (6, M::Ud0 | M::Ud1 | M::Ud2) | (13, M::Cmpxchg16b) => true,
        // Vectors in memory have their place.
        (13, _) => case.instruction.memory_size().size() == 16,
        (17, _) => case.regs.rflags & rflags::AC != 0,
        _ => false,
    }
}
