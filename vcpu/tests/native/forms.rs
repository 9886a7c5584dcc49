//! Which instructions are tried: every integer form of 64-bit code, vectors of SSE2 too, that ring 3 may execute, by the tables
//! of the assembler.

use iced_x86::{
    Code, CpuidFeature as F, DecoderOptions, EncodingKind, Mnemonic as M, OpCodeOperandKind as K,
};

/// A register of `CPUID`.
#[derive(Clone, Copy)]
enum Bit {
    /// Every 64-bit processor has it, or ignores it.
    Always,
    /// Leaf, register (EAX, EBX, ECX, EDX), bit.
    At(u32, usize, u32),
}

/// The extensions that integer instructions come from, and how a processor tells that it has them. (Linux lets
/// programs use FSGSBASE since 5.9.)
#[rustfmt::skip]
const EXTENSIONS: &[(F, Bit)] = &[
    (F::INTEL8086, Bit::Always), (F::INTEL186, Bit::Always), (F::INTEL286, Bit::Always),
    (F::INTEL386, Bit::Always), (F::INTEL486, Bit::Always), (F::X64, Bit::Always),
    (F::CMOV, Bit::Always), (F::CX8, Bit::Always), (F::MULTIBYTENOP, Bit::Always), (F::PAUSE, Bit::Always),
    (F::CET_IBT, Bit::Always), (F::CLDEMOTE, Bit::Always),
    (F::CLFSH, Bit::At(1, 3, 19)), (F::SSE, Bit::At(1, 3, 25)), (F::SSE2, Bit::At(1, 3, 26)),
    (F::CMPXCHG16B, Bit::At(1, 2, 13)), (F::SSE4_2, Bit::At(1, 2, 20)), (F::MOVBE, Bit::At(1, 2, 22)),
    (F::POPCNT, Bit::At(1, 2, 23)), (F::FSGSBASE, Bit::At(7, 1, 0)), (F::BMI1, Bit::At(7, 1, 3)),
    (F::BMI2, Bit::At(7, 1, 8)), (F::ADX, Bit::At(7, 1, 19)), (F::CLFLUSHOPT, Bit::At(7, 1, 23)),
    (F::CLWB, Bit::At(7, 1, 24)), (F::MOVDIRI, Bit::At(7, 2, 27)), (F::SERIALIZE, Bit::At(7, 3, 14)),
    (F::LZCNT, Bit::At(0x8000_0001, 2, 5)), (F::PREFETCHW, Bit::At(0x8000_0001, 2, 8)),
];

/// What does not fit the scheme, and why.
#[rustfmt::skip]
const LEFT_OUT: &[(&str, &[M])] = &[
    ("enters the kernel", &[M::Int, M::Int1, M::Int3, M::Into]),
    ("changes code or stack segment", &[M::Iret, M::Iretd, M::Iretq, M::Retf]),
    ("asks the kernel's tables", &[M::Lfs, M::Lgs, M::Lss, M::Lar, M::Lsl, M::Verr, M::Verw]),
    ("UMIP may forbid it", &[M::Sgdt, M::Sidt, M::Sldt, M::Smsw, M::Str]),
    ("changes the thread's own segment bases", &[M::Wrfsbase, M::Wrgsbase]),
    ("not an integer instruction", &[M::Ldmxcsr, M::Stmxcsr, M::Wait]),
];

/// MOVSXD with a 16-bit destination: Intel reads 16 bits and AMD 32. PREFETCHW of a register: Intel does nothing,
/// AMD raises #UD.
const VENDORS_DIFFER: [Code; 4] = [
    Code::Movsxd_r16_rm16,
    Code::Reservednop_rm16_r16_0F0D,
    Code::Reservednop_rm32_r32_0F0D,
    Code::Reservednop_rm64_r64_0F0D,
];

/// All forms, whether this processor has them or not.
pub fn all() -> Vec<Code> {
    Code::values().filter(|&code| is_tried(code)).collect()
}

fn is_tried(code: Code) -> bool {
    let form = code.op_code();
    let in_ring_3 = form.is_instruction()
        && form.mode64()
        && form.intel_decoder64()
        && form.cpl3()
        && !code.is_privileged()
        && !form.is_input_output();
    let encoding = matches!(form.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    let integer = code.cpuid_features().iter().all(|feature| extension(*feature).is_some())
        && form.op_kinds().iter().all(|kind| is_integer(*kind));
    let far = code.is_jmp_far_indirect() || code.is_call_far_indirect();
    let loads_segment =
        form.op0_kind() == K::seg_reg || code.mnemonic() == M::Pop && is_segment(form.op0_kind());
    let vendors_differ = VENDORS_DIFFER.contains(&code);
    let left_out = LEFT_OUT.iter().any(|(_, mnemonics)| mnemonics.contains(&code.mnemonic()));
    in_ring_3
        && encoding
        && integer
        && form.decoder_option() == DecoderOptions::NONE
        && !(far || loads_segment || vendors_differ || left_out)
}

fn extension(feature: F) -> Option<Bit> {
    EXTENSIONS.iter().find(|(name, _)| *name == feature).map(|&(_, bit)| bit)
}

fn is_segment(kind: K) -> bool {
    matches!(kind, K::es | K::cs | K::ss | K::ds | K::fs | K::gs)
}

#[rustfmt::skip]
fn is_integer(kind: K) -> bool {
    matches!(
        kind,
        K::r8_reg | K::r8_opcode | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode
            | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv
            | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv
            | K::al | K::cl | K::ax | K::dx | K::eax | K::rax | K::seg_reg
            | K::mem | K::mem_offs | K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem
            | K::imm8 | K::imm8_const_1 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64
            | K::imm16 | K::imm32 | K::imm32sex64 | K::imm64
            | K::xmm_reg | K::xmm_rm | K::xmm_or_mem
            | K::seg_rSI | K::seg_rDI | K::es_rDI | K::seg_rBX_al | K::br64_1 | K::br64_4
    ) || is_segment(kind)
}

/// Whether the processor whose `CPUID` this is has the instruction. (A leaf gives EAX, EBX, ECX and EDX.)
pub fn offered(code: Code, mut cpuid: impl FnMut(u32) -> [u32; 4]) -> bool {
    code.cpuid_features().iter().all(|&feature| match extension(feature) {
        Some(Bit::Always) => true,
        Some(Bit::At(leaf, register, bit)) => cpuid(leaf)[register] >> bit & 1 != 0,
        None => false,
    })
}
