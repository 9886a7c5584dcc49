//! Random cases: encodings made of random bytes, kept if they decode to an instruction of the table, with
//! registers chosen so that most memory operands hit something.

use std::fmt;

use iced_x86::{Code, Decoder, DecoderOptions, FastFormatter, Instruction, Mnemonic, OpKind, Register};

use super::guest::{self, NAMES};

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const DF: u64 = 1 << 10;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// An instruction under test, and the flags the SDM leaves undefined.
#[derive(Debug)]
pub struct Form {
    pub mnemonic: Mnemonic,
    undefined: u64,
}

macro_rules! forms {
    ($($undefined:expr => $($mnemonic:ident)*;)*) => {
        &[$($(Form { mnemonic: Mnemonic::$mnemonic, undefined: $undefined },)*)*]
    };
}

/// Ports, far transfers, and what shows the real machine (`PUSHF`, `SGDT`, selectors, `CPUID`) can't be here.
/// Counts of shifts and rotations narrow what is undefined: see [`undefined_flags`].
#[rustfmt::skip]
pub const FORMS: &[Form] = forms! {
    0 => Mov Movzx Movsx Movsxd Movbe Lea Xchg Bswap Xlatb Push Pop Leave Cbw Cwde Cdqe Cwd Cdq Cqo Nop Pause;
    0 => Add Adc Sub Sbb Cmp Inc Dec Neg Not Xadd Cmpxchg Cmpxchg8b Cmpxchg16b;
    AF => And Or Xor Test;
    SF | ZF | AF | PF => Mul Imul;
    STATUS => Div Idiv;
    AF | OF => Shl Sal Shr Sar Shld Shrd;
    OF => Rol Ror Rcl Rcr;
    OF | SF | AF | PF => Bt Bts Btr Btc Tzcnt Lzcnt;
    STATUS & !ZF => Bsf Bsr;
    0 => Popcnt Adcx Adox;
    AF | PF => Andn Blsi Blsmsk Blsr Bzhi;
    AF | PF | SF => Bextr;
    0 => Mulx Pdep Pext Rorx Sarx Shlx Shrx;
    0 => Clc Stc Cmc Cld Std Lahf Sahf;
    0 => Jo Jno Jb Jae Je Jne Jbe Ja Js Jns Jp Jnp Jl Jge Jle Jg Jmp Call Ret Loop Loope Loopne Jrcxz Jecxz;
    0 => Seto Setno Setb Setae Sete Setne Setbe Seta Sets Setns Setp Setnp Setl Setge Setle Setg;
    0 => Cmovo Cmovno Cmovb Cmovae Cmove Cmovne Cmovbe Cmova Cmovs Cmovns Cmovp Cmovnp Cmovl Cmovge Cmovle Cmovg;
    0 => Movsb Movsw Movsd Movsq Stosb Stosw Stosd Stosq Lodsb Lodsw Lodsd Lodsq;
    0 => Cmpsb Cmpsw Cmpsd Cmpsq Scasb Scasw Scasd Scasq;
    0 => Enter;
    0 => Ud2 Int3 Hlt Clts Invlpg Rdmsr Wrmsr Wbinvd INVALID;
};

/// A KVM that emulates whatever raises #GP does not know these: they must not raise any.
#[rustfmt::skip]
const NOT_EMULATED: [Mnemonic; 17] = {
    use Mnemonic::*;
    [
        Movbe, Popcnt, Adcx, Adox, Andn, Bextr, Blsi, Blsmsk, Blsr, Bzhi, Mulx, Pdep, Pext, Rorx, Sarx, Shlx,
        Shrx,
    ]
};

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A value of the kind that breaks arithmetic.
    pub fn interesting(&mut self) -> u64 {
        let shift = self.below(64);
        match self.below(8) {
            0 => self.below(4),
            1 => self.below(4).wrapping_neg(),
            2 => 1 << shift,
            3 => (1u64 << shift).wrapping_sub(1),
            4 => self.next() >> shift,
            5 => (self.next() as i64 >> shift) as u64,
            _ => self.next(),
        }
    }
}

/// One instruction and the registers it starts with.
#[derive(Clone)]
pub struct Case {
    pub instruction: Instruction,
    pub bytes: Vec<u8>,
    pub regs: [u64; 16],
    pub flags: u64,
    pub undefined_flags: u64,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        FastFormatter::new().format(&self.instruction, &mut text);
        writeln!(f, "{text}    {:02x?}", self.bytes)?;
        for (name, value) in NAMES.iter().zip(self.regs) {
            write!(f, "{name}={value:x} ")?;
        }
        write!(f, "flags={:x}", self.flags)
    }
}

pub struct Generator {
    pub random: Random,
}

/// Executed after a branch that is not taken: `not r15`.
const MARKER: [u8; 3] = [0x49, 0xf7, 0xd7];
/// One-byte opcodes that 64-bit mode does not have.
const INVALID: [u8; 16] =
    [0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x9a, 0xce, 0xd4];

/// Groups of prefixes, and how often one is there in a hundred. At most one of a group: of several,
/// processors choose differently.
const PREFIXES: [(&[u8], u64); 4] =
    [(&[0x66], 20), (&[0x67], 8), (&[0xf0, 0xf2, 0xf3], 15), (&[0x64, 0x65, 0x26, 0x2e, 0x36, 0x3e], 12)];

fn is_prefix(byte: u8) -> bool {
    (0x40..0x50).contains(&byte) || PREFIXES.iter().any(|(group, _)| group.contains(&byte))
}

impl Generator {
    pub fn new(seed: u64) -> Self {
        Self { random: Random(seed) }
    }

    pub fn case(&mut self) -> Case {
        loop {
            let bytes = self.random_encoding();
            if let Some(case) = self.complete(bytes) {
                return case;
            }
        }
    }

    /// Prefixes, an opcode, and random bytes behind.
    fn random_encoding(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut bytes = Vec::with_capacity(32);
        for (group, chance) in PREFIXES {
            if random.percent(chance) {
                bytes.push(random.pick(group));
            }
        }
        if random.percent(50) {
            bytes.push(0x40 | random.below(16) as u8);
        }
        let mut opcode = random.next() as u8;
        while is_prefix(opcode) {
            opcode = random.next() as u8;
        }
        match random.below(40) {
            0..20 => bytes.push(opcode),
            20..36 => bytes.extend([0x0f, random.next() as u8]),
            36..38 => bytes.extend([0x0f, 0x38, 0xf0 | random.below(8) as u8]),
            _ => return self.random_vex(),
        }
        bytes.extend((0..12).map(|_| random.next() as u8));
        bytes
    }

    /// The general-purpose corner of VEX: no vectors, three operands.
    fn random_vex(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let (map, opcode) = random.pick(&[(2, 0xf2), (2, 0xf3), (2, 0xf5), (2, 0xf6), (2, 0xf7), (3, 0xf0)]);
        let wide_vvvv_pp = random.next() as u8 & 0b1111_1011;
        let mut bytes = vec![0xc4, random.next() as u8 & 0xe0 | map, wide_vvvv_pp, opcode];
        bytes.extend((0..12).map(|_| random.next() as u8));
        bytes
    }

    fn complete(&mut self, mut bytes: Vec<u8>) -> Option<Case> {
        make_frame_small(&mut bytes);
        let instruction = decode(&bytes)?;
        let form = FORMS.iter().find(|form| form.mnemonic == instruction.mnemonic())?;
        if !is_testable(&instruction, &bytes) {
            return None;
        }
        bytes.truncate(instruction.len().max(1));
        let mut regs = std::array::from_fn(|_| self.random.interesting());
        regs[4] = self.address() & if self.random.percent(90) { !7 } else { !0 };
        let flags = self.random.next() & (STATUS | DF);

        self.shape_registers(&instruction, &mut regs);
        self.aim_memory_operand(&instruction, &mut regs, &mut bytes);
        let instruction = decode(&bytes)?;
        let undefined_flags = undefined_flags(&instruction, form, &regs)?;
        let mut case = Case { instruction, bytes, regs, flags, undefined_flags };
        case.make_branch_harmless();
        Some(case)
    }

    /// An address that hits the data pages, mostly.
    fn address(&mut self) -> u64 {
        let near = self.random.below(32).wrapping_sub(16);
        match self.random.below(40) {
            0 => guest::DATA.wrapping_add(near),
            1 => guest::READ_ONLY.wrapping_add(near),
            2 => guest::SUPERVISOR.wrapping_add(near),
            3 => guest::ABSENT.wrapping_add(near),
            // Not across the edge of what is canonical: processors differ in what comes first there.
            4 => self.random.pick(&[0x7fff_ffff_fff0, 0xffff_7fff_ffff_fff0]),
            5 => self.random.pick(&[0x8000_0000_0000, 0xffff_8000_0000_0000]),
            6 => self.random.interesting() & !15,
            7..10 => (guest::DATA + 0x1000).wrapping_add(near),
            _ => guest::DATA + 64 + self.random.below(0x2000 - 128),
        }
    }

    /// Registers that an instruction uses without naming them, or that would lead it far away.
    fn shape_registers(&mut self, instruction: &Instruction, regs: &mut [u64; 16]) {
        let [rcx, rdx, rbp, rsi, rdi] = [1, 2, 5, 6, 7];
        match instruction.mnemonic() {
            Mnemonic::Leave => regs[rbp] = self.address(),
            Mnemonic::Div | Mnemonic::Idiv if self.random.percent(70) => {
                regs[rdx] = self.random.pick(&[0, 1, u64::MAX]);
                regs[0] &= self.random.pick(&[u64::MAX, 0xff, 0x1_ffff]);
            }
            Mnemonic::Cmpxchg | Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b if self.random.percent(50) => {
                (regs[0], regs[rdx]) = (0, 0);
            }
            Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne | Mnemonic::Jrcxz | Mnemonic::Jecxz => {
                regs[rcx] = self.random.below(3) | self.random.pick(&[0, 1 << 32]);
            }
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
                if instruction.op1_kind() == OpKind::Register =>
            {
                if let Some(index) = gpr(instruction.op1_register()) {
                    regs[index] = self.random.below(512).wrapping_sub(256);
                }
            }
            _ if is_string(instruction) => {
                regs[rcx] = self.random.below(6) | self.random.pick(&[0, 0, 1 << 32]);
                if !(instruction.has_rep_prefix() || instruction.has_repne_prefix()) {
                    regs[rcx] = self.random.next();
                } else if regs[rcx] > 6 && !uses_ecx(instruction) {
                    regs[rcx] &= 7;
                }
                (regs[rsi], regs[rdi]) = (self.address(), self.address());
            }
            _ => {}
        }
    }

    /// Makes the memory operand an address of [`Generator::address`]: by its base, or its displacement.
    fn aim_memory_operand(&mut self, instruction: &Instruction, regs: &mut [u64; 16], bytes: &mut [u8]) {
        if !instruction.op_kinds().any(|kind| kind == OpKind::Memory) {
            return;
        }
        let mut target = self.address();
        if NOT_EMULATED.contains(&instruction.mnemonic()) {
            target = guest::DATA + self.random.below(0x1f00);
        }
        if instruction.mnemonic() == Mnemonic::Cmpxchg16b && self.random.percent(80) {
            target &= !15;
        }
        target = target.wrapping_sub(match instruction.memory_segment() {
            Register::FS => guest::FS_BASE,
            Register::GS => guest::GS_BASE,
            _ => 0,
        });
        let index = gpr(instruction.memory_index());
        match gpr(instruction.memory_base()) {
            Some(base) if index != Some(base) => {
                let scaled = index
                    .map_or(0, |index| regs[index].wrapping_mul(instruction.memory_index_scale().into()));
                regs[base] = target.wrapping_sub(scaled).wrapping_sub(instruction.memory_displacement64());
            }
            Some(_) => {}
            None if index.is_none() => patch_displacement(instruction, bytes, target),
            None => {}
        }
    }
}

impl Case {
    /// A branch goes over a marker, or not: both ends are near.
    fn make_branch_harmless(&mut self) {
        let len = self.bytes.len();
        let constants = constant_offsets(&self.bytes);
        let distance = MARKER.len() as u64;
        if self.instruction.op0_kind() == OpKind::NearBranch64 {
            let field = constants.immediate_offset();
            self.bytes[field..len].fill(0);
            self.bytes[field] = distance as u8;
        } else if self.instruction.mnemonic() == Mnemonic::Ret {
            // lea rax, [rip + len + marker]; push rax
            let to_target = (len as u64 + 1 + distance) as u32;
            let mut bytes = vec![0x48, 0x8d, 0x05];
            bytes.extend(to_target.to_le_bytes());
            bytes.push(0x50);
            bytes.append(&mut self.bytes);
            self.bytes = bytes;
        } else {
            return;
        }
        self.bytes.extend(MARKER);
    }
}

/// Of `ENTER`, no room and no levels: processors leave the first words of a frame behind if a later one faults.
fn make_frame_small(bytes: &mut [u8]) {
    let opcode = bytes.iter().position(|&byte| !is_prefix(byte)).unwrap_or(0);
    if let [0xc8, room_and_level @ ..] = &mut bytes[opcode..] {
        room_and_level[..3].fill(0);
    }
}

fn decode(bytes: &[u8]) -> Option<Instruction> {
    let instruction = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
    (!instruction.is_invalid() || is_invalid_for_sure(bytes)).then_some(instruction)
}

fn constant_offsets(bytes: &[u8]) -> iced_x86::ConstantOffsets {
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let instruction = decoder.decode();
    decoder.get_constant_offsets(&instruction)
}

/// A lone opcode that does not exist; of others a decoder and a processor may think differently.
fn is_invalid_for_sure(bytes: &[u8]) -> bool {
    INVALID.contains(&bytes[0])
}

/// Sets the displacement of an absolute or RIP-relative operand. The instruction's address is not known
/// here, so a RIP-relative one hits or misses as it may.
fn patch_displacement(instruction: &Instruction, bytes: &mut [u8], target: u64) {
    let constants = constant_offsets(bytes);
    if instruction.is_ip_rel_memory_operand() || constants.displacement_size() < 4 {
        return;
    }
    let size = constants.displacement_size();
    bytes[constants.displacement_offset()..][..size].copy_from_slice(&target.to_le_bytes()[..size]);
}

fn is_testable(instruction: &Instruction, bytes: &[u8]) -> bool {
    let in_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    let plain = gpr(instruction.memory_base()).is_some() && instruction.memory_index() == Register::None;
    if NOT_EMULATED.contains(&instruction.mnemonic()) && in_memory && !plain {
        return false;
    }
    if instruction.mnemonic() == Mnemonic::Movbe && !std::arch::is_x86_feature_detected!("movbe") {
        return false;
    }
    let prefixed = |prefix| bytes[..instruction.len()].contains(&prefix);
    match instruction.code() {
        // Selectors and control registers show the machine below.
        Code::Mov_rm16_Sreg | Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg => false,
        Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 => false,
        Code::Mov_r64_dr | Code::Mov_dr_r64 => false,
        Code::Pushq_FS | Code::Pushq_GS | Code::Pushw_FS | Code::Pushw_GS => false,
        Code::Popq_FS | Code::Popq_GS | Code::Popw_FS | Code::Popw_GS => false,
        // The scalar moves and compares of SSE share a name with the string instructions.
        Code::Movsd_xmm_xmmm64 | Code::Movsd_xmmm64_xmm | Code::Cmpsd_xmm_xmmm64_imm8 => false,
        // These go where memory or a register says.
        Code::Jmp_rm64 | Code::Call_rm64 | Code::Jmp_m1616 | Code::Jmp_m1632 | Code::Jmp_m1664 => false,
        Code::Call_m1616 | Code::Call_m1632 | Code::Call_m1664 => false,
        // With REX.B, AMD's processors see an `XCHG`.
        Code::Pause if (0x41..0x50).step_by(2).any(prefixed) => false,
        // Of a 16-bit register, Intel's processors read 16 bits, AMD's 32.
        Code::Movsxd_r16_rm16 => false,
        // The result is undefined.
        Code::Bswap_r16 => false,
        // Intel's processors ignore the operand-size prefix of a near branch, AMD's do not; and AMD's swap
        // `LOOPE` and `LOOPNE` for a repeat prefix, whose use there is reserved.
        _ if instruction.op0_kind() == OpKind::NearBranch64 || instruction.mnemonic() == Mnemonic::Ret => {
            ![0x66, 0xf2, 0xf3].into_iter().any(prefixed)
        }
        _ => true,
    }
}

/// What a given count leaves undefined; `None` if that is the result itself.
fn undefined_flags(instruction: &Instruction, form: &Form, regs: &[u64; 16]) -> Option<u64> {
    let count = |operand| match instruction.op_kind(operand) {
        OpKind::Register => regs[1],
        _ => instruction.immediate(operand),
    };
    let width = gpr_bits(instruction);
    let masked = |count: u64| if width == 64 { count & 63 } else { count & 31 };
    Some(match instruction.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => match masked(count(1)) {
            0 => 0,
            1 => AF,
            n if n >= width => AF | OF | CF,
            _ => AF | OF,
        },
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr => match masked(count(1)) {
            0 | 1 => 0,
            _ => OF,
        },
        Mnemonic::Shld | Mnemonic::Shrd => match masked(count(2)) {
            0 => 0,
            1 => AF,
            n if n > width => return None,
            _ => AF | OF,
        },
        _ => form.undefined,
    })
}

/// The width of operand 0 in bits.
fn gpr_bits(instruction: &Instruction) -> u64 {
    use iced_x86::MemorySize::{Int8, Int16, Int32, UInt8, UInt16, UInt32};
    let register = instruction.op0_register() as usize;
    match instruction.op0_kind() {
        OpKind::Register if register < Register::AX as usize => 8,
        OpKind::Register if register < Register::EAX as usize => 16,
        OpKind::Register if register < Register::RAX as usize => 32,
        OpKind::Register => 64,
        _ => match instruction.memory_size() {
            UInt8 | Int8 => 8,
            UInt16 | Int16 => 16,
            UInt32 | Int32 => 32,
            _ => 64,
        },
    }
}

fn is_string(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| {
        matches!(
            kind,
            OpKind::MemorySegRSI | OpKind::MemorySegESI | OpKind::MemoryESRDI | OpKind::MemoryESEDI
        )
    })
}

fn uses_ecx(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI))
}

/// The number of a 16, 32 or 64-bit register.
fn gpr(register: Register) -> Option<usize> {
    let number = (register as usize).checked_sub(Register::AX as usize)?;
    (register as usize <= Register::R15 as usize).then_some(number % 16)
}
