//! Random cases: operands for a form, and a state in which it does something worth looking at.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, Instruction, Mnemonic as M, OpCodeOperandKind as K, OpKind,
    Register,
};
use vcpu::{Gpr, Regs, rflags};

use crate::address::Route;
use crate::case::{Case, Memory};
use crate::layout::{ARENA, CODE, PAGE};
use crate::random::Random;

/// No string instruction repeats so often.
pub const MAX_ITERATIONS: usize = 32;
/// How often operands are drawn for a form until some can be encoded (AH can't stand beside R8, ...).
const ATTEMPTS: usize = 64;
/// The longest instruction.
const MAX_INSTRUCTION: u64 = 15;

const STATUS: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF | rflags::OF;

/// A case in the making.
pub struct Draw<'a> {
    pub random: &'a mut Random,
    pub regs: Regs,
    xmm: [u128; 16],
    pub memory: Memory,
    pub fs_base: u64,
    /// Registers that have to stay as they are, by index.
    pinned: u32,
    /// The memory operand's address, if there is one.
    target: Option<u64>,
}

/// A case of this form; `None` if the assembler can't write it.
pub fn case(form: Code, random: &mut Random, fs_base: u64) -> Option<Case> {
    (0..ATTEMPTS).find_map(|_| Draw::new(random, fs_base).finish(form))
}

impl<'a> Draw<'a> {
    fn new(random: &'a mut Random, fs_base: u64) -> Self {
        let mut regs = Regs { gpr: std::array::from_fn(|_| random.value()), ..Regs::default() };
        regs.rip = CODE + PAGE - random.below(MAX_INSTRUCTION + 1);
        let mut optional = STATUS | rflags::ID;
        for (flag, cases) in [(rflags::DF, 3), (rflags::NT, 8), (rflags::AC, 16)] {
            optional |= if random.one_in(cases) { flag } else { 0 };
        }
        regs.rflags = rflags::FIXED | random.next() & optional;
        let xmm = std::array::from_fn(|_| vector(random));
        let memory = memory(random);
        Self { random, regs, xmm, memory, fs_base, pinned: 0, target: None }
    }

    /// Sets a register for good.
    pub fn pin(&mut self, register: usize, value: u64) {
        self.regs.gpr[register] = value;
        self.pinned |= 1 << register;
    }

    /// Sets a register unless an address depends on it.
    fn suggest(&mut self, register: Gpr, value: u64) {
        if self.pinned >> register as usize & 1 == 0 {
            self.regs[register] = value;
        }
    }

    fn finish(mut self, form: Code) -> Option<Case> {
        let mut instruction = Instruction::new();
        instruction.set_code(form);
        self.stack(form);
        for (operand, &kind) in (0..).zip(form.op_code().op_kinds()) {
            self.operand(&mut instruction, operand, kind);
        }
        self.string(&mut instruction);
        self.memory_operand(&mut instruction);
        self.implicit(&mut instruction);
        self.control_transfer(&mut instruction);

        let mut encoder = Encoder::new(64);
        encoder.encode(&instruction, self.regs.rip).ok()?;
        let bytes = encoder.take_buffer();
        // Some encodings mean something else: XCHG with RAX twice is NOP.
        let mut decoder = Decoder::with_ip(64, &bytes, self.regs.rip, DecoderOptions::NONE);
        let instruction = decoder.decode();
        let same = instruction.code() == form && instruction.len() == bytes.len();
        same.then_some(Case { form, instruction, bytes, regs: self.regs, xmm: self.xmm, memory: self.memory })
    }

    /// Registers and immediates; of memory operands only that they are some.
    fn operand(&mut self, instruction: &mut Instruction, operand: u32, kind: K) {
        let any = |random: &mut Random, first: Register, count| first + random.below(count) as u32;
        let memory = self.random.one_in(2);
        let register = match kind {
            K::r8_or_mem
            | K::r16_or_mem
            | K::r32_or_mem
            | K::r64_or_mem
            | K::xmm_or_mem
            | K::mem
            | K::mem_offs
                if memory || matches!(kind, K::mem | K::mem_offs) =>
            {
                return instruction.set_op_kind(operand, OpKind::Memory);
            }
            K::r8_or_mem | K::r8_reg | K::r8_opcode => any(self.random, Register::AL, 20),
            K::r16_or_mem | K::r16_reg | K::r16_reg_mem | K::r16_rm | K::r16_opcode => {
                any(self.random, Register::AX, 16)
            }
            K::r32_or_mem | K::r32_reg | K::r32_reg_mem | K::r32_rm | K::r32_opcode | K::r32_vvvv => {
                any(self.random, Register::EAX, 16)
            }
            K::r64_or_mem | K::r64_reg | K::r64_reg_mem | K::r64_rm | K::r64_opcode | K::r64_vvvv => {
                any(self.random, Register::RAX, 16)
            }
            K::xmm_or_mem | K::xmm_reg | K::xmm_rm => any(self.random, Register::XMM0, 16),
            K::seg_reg => any(self.random, Register::ES, 6),
            K::es => Register::ES,
            K::cs => Register::CS,
            K::ss => Register::SS,
            K::ds => Register::DS,
            K::fs => Register::FS,
            K::gs => Register::GS,
            K::al => Register::AL,
            K::cl => Register::CL,
            K::ax => Register::AX,
            K::dx => Register::DX,
            K::eax => Register::EAX,
            K::rax => Register::RAX,
            _ => return self.immediate(instruction, operand, kind),
        };
        instruction.set_op_kind(operand, OpKind::Register);
        instruction.set_op_register(operand, register);
    }

    fn immediate(&mut self, instruction: &mut Instruction, operand: u32, kind: K) {
        let value = self.random.value();
        let byte = value as i8 as i64 as u64;
        let (kind, value) = match kind {
            K::imm8 if operand == 1 && instruction.code().mnemonic() == M::Enter => {
                (OpKind::Immediate8_2nd, value)
            }
            K::imm8 => (OpKind::Immediate8, value),
            K::imm8_const_1 => (OpKind::Immediate8, 1),
            K::imm8sex16 => (OpKind::Immediate8to16, byte),
            K::imm8sex32 => (OpKind::Immediate8to32, byte),
            K::imm8sex64 => (OpKind::Immediate8to64, byte),
            K::imm16 => (OpKind::Immediate16, value),
            K::imm32 => (OpKind::Immediate32, value),
            K::imm32sex64 => (OpKind::Immediate32to64, value as i32 as i64 as u64),
            K::imm64 => (OpKind::Immediate64, value),
            // Strings, XLAT and branches are dealt with as wholes.
            _ => return,
        };
        instruction.set_op_kind(operand, kind);
        instruction.set_immediate_u64(operand, value);
    }

    /// The stack of what uses it, and what it finds there.
    fn stack(&mut self, form: Code) {
        if !form.is_stack_instruction() {
            return;
        }
        let top = self.plain_target();
        let frame = self.plain_target();
        self.pin(Gpr::Rsp as usize, top);
        match form.mnemonic() {
            M::Leave | M::Enter => self.pin(Gpr::Rbp as usize, frame),
            M::Popf | M::Popfq => {
                // What ring 3 can't change is there to be left alone. TF would trap.
                let flags = self.random.next() & 0x3f_ffff & !rflags::TF;
                self.store(top, flags);
            }
            M::Ret => {
                let landing = self.landing(PAGE / 2);
                self.store(top, landing);
            }
            _ => {}
        }
    }

    fn store(&mut self, address: u64, value: u64) {
        let bytes = self.memory.bytes(address, 8).expect("targets lie in an arena");
        bytes.copy_from_slice(&value.to_le_bytes());
    }

    /// String instructions: pointers, count and prefix.
    fn string(&mut self, instruction: &mut Instruction) {
        let form = instruction.code().op_code();
        let kinds = form.op_kinds();
        if kinds.contains(&K::seg_rDI) {
            return self.masked_store(instruction);
        }
        if !kinds.contains(&K::seg_rSI) && !kinds.contains(&K::es_rDI) {
            return;
        }
        let source = self.route();
        let Route { narrow, segment, .. } = source;
        let destination = loop {
            let route = self.route();
            if route.narrow == narrow && !matches!(route.segment, Register::FS | Register::GS) {
                break route;
            }
        };
        for (operand, kind) in (0..).zip(kinds) {
            match kind {
                K::seg_rSI => {
                    let kind = if narrow { OpKind::MemorySegESI } else { OpKind::MemorySegRSI };
                    instruction.set_op_kind(operand, kind);
                    instruction.set_segment_prefix(segment);
                    self.point(Gpr::Rsi, narrow, source.offset());
                }
                K::es_rDI => {
                    let kind = if narrow { OpKind::MemoryESEDI } else { OpKind::MemoryESRDI };
                    instruction.set_op_kind(operand, kind);
                    self.point(Gpr::Rdi, narrow, destination.offset());
                }
                _ => {}
            }
        }
        let count = self.random.below(MAX_ITERATIONS as u64);
        match self.random.below(3) {
            0 => return,
            1 if form.can_use_repne_prefix() => instruction.set_has_repne_prefix(true),
            _ => instruction.set_has_rep_prefix(true),
        }
        self.point(Gpr::Rcx, narrow, count);
    }

    /// The pointer of `MASKMOVDQU`.
    fn masked_store(&mut self, instruction: &mut Instruction) {
        let route = self.route();
        instruction.set_op0_kind(if route.narrow { OpKind::MemorySegEDI } else { OpKind::MemorySegRDI });
        instruction.set_segment_prefix(route.segment);
        self.point(Gpr::Rdi, route.narrow, route.offset());
    }

    /// The explicit memory operand, and a LOCK prefix before some that may have one.
    fn memory_operand(&mut self, instruction: &mut Instruction) {
        let form = instruction.code();
        let mut route = self.route();
        if form.op_code().op_kinds().contains(&K::seg_rBX_al) {
            instruction.set_op_kind(0, OpKind::Memory);
            instruction.set_segment_prefix(route.segment);
            instruction.set_memory_base(if route.narrow { Register::EBX } else { Register::RBX });
            instruction.set_memory_index(Register::AL);
            let mask = if route.narrow { u32::MAX.into() } else { u64::MAX };
            let table = route.offset().wrapping_sub(self.regs[Gpr::Rax] & 0xff) & mask;
            return self.point(Gpr::Rbx, route.narrow, table);
        }
        if !form
            .op_code()
            .op_kinds()
            .iter()
            .enumerate()
            .any(|(operand, _)| instruction.op_kind(operand as u32) == OpKind::Memory)
        {
            return;
        }
        if Self::only_an_address(form) {
            return self.aim_anywhere(instruction);
        }
        let (extra, kept) = self.bit_offset(instruction);
        self.reach(instruction, &mut route, extra, kept);
        self.target = Some(route.target);
        if form.op_code().can_use_lock_prefix() && instruction.op0_kind() == OpKind::Memory {
            instruction.set_has_lock_prefix(self.random.one_in(3));
        }
    }

    /// How far `BT` and its kin go from their operand, and the register (as a mask) that says so.
    fn bit_offset(&self, instruction: &Instruction) -> (u64, u32) {
        let bits = matches!(instruction.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc);
        if !bits || instruction.op1_kind() != OpKind::Register {
            return (0, 0);
        }
        let register = instruction.op1_register();
        let index = register.full_register() as usize - Register::RAX as usize;
        let value = self.regs.gpr[index] as i64;
        let bytes = match register.size() {
            2 => i64::from(value as i16) >> 4 << 1,
            4 => i64::from(value as i32) >> 5 << 2,
            _ => value >> 6 << 3,
        };
        (bytes as u64, 1 << index)
    }

    /// Registers that an instruction uses without naming them.
    fn implicit(&mut self, instruction: &mut Instruction) {
        match instruction.mnemonic() {
            M::Div | M::Idiv => self.dividend(instruction.mnemonic() == M::Idiv),
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if self.random.one_in(2) => self.expect(instruction),
            M::Enter => {
                // The deepest frame with its room still lies in the arena.
                instruction.set_immediate16(self.random.below(32) as u16);
                instruction.set_immediate8_2nd(self.random.pick(&[0, 1, 2, 3, 4, 31, 32, 63, 65]));
            }
            M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz => {
                let count = self.random.pick(&[0, 1, 2, 1 << 32, (1 << 32) + 1, u64::MAX]);
                if self.random.one_in(2) {
                    self.suggest(Gpr::Rcx, count);
                }
            }
            _ => {}
        }
    }

    /// A dividend that is not too large for most divisors.
    fn dividend(&mut self, signed: bool) {
        let (low, shift) = (self.random.next(), self.random.below(64));
        match self.random.below(4) {
            0 => {}
            1 => {
                // AX of a byte's division is the dividend.
                self.suggest(Gpr::Rax, low >> shift);
                self.suggest(Gpr::Rdx, 0);
            }
            2 if signed => {
                self.suggest(Gpr::Rax, (low as i64 >> shift) as u64);
                self.suggest(Gpr::Rdx, (low as i64 >> 63) as u64);
            }
            _ => {
                self.suggest(Gpr::Rax, low);
                self.suggest(Gpr::Rdx, self.regs[Gpr::Rdx] >> shift);
            }
        }
    }

    /// What a compare-and-exchange hopes to find.
    fn expect(&mut self, instruction: &Instruction) {
        let mut bytes = [0; 16];
        match self.target {
            Some(target) => {
                let len = instruction.memory_size().size();
                bytes[..len].copy_from_slice(self.memory.bytes(target, len).expect("a target in an arena"));
            }
            None => {
                let register = instruction.op0_register();
                let index = register.full_register() as usize - Register::RAX as usize;
                let high = (Register::AH..=Register::BH).contains(&register);
                bytes[..8].copy_from_slice(&(self.regs.gpr[index] >> if high { 8 } else { 0 }).to_le_bytes());
            }
        }
        let found = u128::from_le_bytes(bytes);
        let half = if instruction.mnemonic() == M::Cmpxchg8b { 32 } else { 64 };
        self.suggest(Gpr::Rax, found as u64 & u64::MAX >> (64 - half));
        self.suggest(Gpr::Rdx, (found >> half) as u64);
    }

    /// Where jumps, calls and returns lead: to breakpoints around the instruction.
    fn control_transfer(&mut self, instruction: &mut Instruction) {
        match instruction.code().op_code().op0_kind() {
            K::br64_1 => {
                let target = self.landing(100);
                instruction.set_op0_kind(OpKind::NearBranch64);
                instruction.set_near_branch64(target);
            }
            K::br64_4 => {
                let target = self.landing(PAGE / 2);
                instruction.set_op0_kind(OpKind::NearBranch64);
                instruction.set_near_branch64(target);
            }
            K::r64_or_mem if matches!(instruction.mnemonic(), M::Jmp | M::Call) => {
                let landing = self.landing(PAGE / 2);
                match self.target {
                    Some(target) => self.store(target, landing),
                    None => {
                        // CALL needs RSP for its stack.
                        if instruction.op0_register() == Register::RSP {
                            instruction.set_op0_register(Register::RBP);
                        }
                        self.pin(instruction.op0_register() as usize - Register::RAX as usize, landing);
                    }
                }
            }
            _ => {}
        }
    }

    /// An address not more than `reach` away, but not inside the instruction.
    fn landing(&mut self, reach: u64) -> u64 {
        loop {
            let landing = self.regs.rip - reach + self.random.below(2 * reach);
            if !(self.regs.rip..self.regs.rip + MAX_INSTRUCTION).contains(&landing) {
                return landing;
            }
        }
    }
}

/// Noise, or one integer over and over; the upper half may be 0, as it is in counts of shifts.
fn vector(random: &mut Random) -> u128 {
    let (low, high) = (u128::from(random.value()), u128::from(random.value()));
    match random.below(4) {
        0 => random.below(70).into(),
        1 => low << 64 | low,
        2 => u128::from_ne_bytes([low as u8; 16]),
        _ => high << 64 | low,
    }
}

/// Both arenas: noise, or mostly one value over and over, so that comparisons find equals.
fn memory(random: &mut Random) -> Memory {
    let word = match random.below(4) {
        0 => Some(random.value()),
        1 => Some(u64::from_ne_bytes([random.next() as u8; 8])),
        _ => None,
    };
    let mut arena = || {
        let mut bytes = [0; ARENA];
        for chunk in bytes.chunks_exact_mut(8) {
            let noise = random.next();
            let value = word.filter(|_| !noise.is_multiple_of(8)).unwrap_or(noise);
            chunk.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    };
    Memory { low: arena(), high: arena() }
}
