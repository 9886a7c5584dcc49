//! The instructions, by group. [`Step::execute`] is the table of them all.

mod arithmetic;
mod bits;
mod bmi;
mod control;
pub(super) mod control_registers;
mod hypercall;
mod io;
mod legacy;
mod moves;
mod protection;
mod shifts;
pub(super) mod sse;
mod strings;
mod system;
pub(super) mod x87;

use iced_x86::{CpuidFeature, EncodingKind, Mnemonic as M};

pub(super) use self::control::Condition;
use super::alu::{self, Width};
use super::cpuid::Feature;
use super::descriptors::Descriptor;
use super::exceptions::Exception;
use super::segments::SegmentName;
use super::step::{Abort, Step};
use crate::soft::Bus;
use crate::{cr0, rflags};

/// What executing gives: nothing, or the reason why the instruction is not finished.
type Outcome = Result<(), Abort>;

impl<B: Bus> Step<'_, B> {
    /// Executes `self.instruction`; RIP is already past it.
    pub(super) fn execute(&mut self) -> Outcome {
        match self.instruction.mnemonic() {
            M::Mov | M::Movnti => self.mov(),
            M::Movzx => self.movzx(),
            M::Movsx | M::Movsxd => self.movsx(),
            M::Movbe => self.requires(Feature::MOVBE).and_then(|()| self.movbe()),
            M::Lea => self.lea(),
            M::Xchg => self.xchg(),
            M::Bswap => self.bswap(),
            M::Xlatb => self.xlat(),
            M::Push => self.push_operand(),
            M::Pop => self.pop_operand(),
            M::Pusha => self.push_all_registers(Width::Word),
            M::Pushad => self.push_all_registers(Width::Dword),
            M::Popa => self.pop_all_registers(Width::Word),
            M::Popad => self.pop_all_registers(Width::Dword),
            M::Enter => self.enter(),
            M::Leave => self.leave(),
            M::Les => self.load_far_pointer(SegmentName::Es),
            M::Lds => self.load_far_pointer(SegmentName::Ds),
            M::Lfs => self.load_far_pointer(SegmentName::Fs),
            M::Lgs => self.load_far_pointer(SegmentName::Gs),
            M::Lss => self.load_far_pointer(SegmentName::Ss),
            M::Cbw | M::Cwde | M::Cdqe => self.extend_accumulator(),
            M::Cwd | M::Cdq | M::Cqo => self.sign_into_rdx(),
            M::Wait => self.wait(),
            M::Fninit => self.fninit(),
            M::Fldcw => self.fldcw(),
            M::Fnstcw => self.fnstcw(),
            M::Fnstsw => self.fnstsw(),
            M::Ldmxcsr => self.ldmxcsr(),
            M::Stmxcsr => self.stmxcsr(),
            M::Fxsave | M::Fxsave64 => self.fxsave(),
            M::Fxrstor | M::Fxrstor64 => self.fxrstor(),
            M::Maskmovdqu => self.maskmovdqu(),
            // What is not yet anything else: but `PREFETCHW` is there, and has no register.
            M::Reservednop if self.is_prefetch_of_register() => Err(Exception::INVALID_OPCODE.into()),
            M::Reservednop | M::Rdsspd | M::Rdsspq => Ok(()),
            M::Pause => self.pause(),
            M::Nop | M::Endbr64 | M::Endbr32 | M::Cldemote => Ok(()),
            M::Prefetch | M::Prefetchw | M::Prefetchwt1 => Ok(()),
            M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 => Ok(()),
            M::Lfence | M::Mfence | M::Sfence => Ok(()),

            M::Add => self.binary(alu::add),
            M::Adc => self.binary(alu::adc),
            M::Sub => self.binary(alu::sub),
            M::Sbb => self.binary(alu::sbb),
            M::And => self.binary(alu::and),
            M::Or => self.binary(alu::or),
            M::Xor => self.binary(alu::xor),
            M::Cmp => self.compare(alu::sub),
            M::Test => self.compare(alu::and),
            M::Inc => self.step_by_one(alu::add),
            M::Dec => self.step_by_one(alu::sub),
            M::Neg => self.neg(),
            M::Not => self.not(),
            M::Mul => self.multiply_accumulator(alu::mul),
            M::Imul => self.imul(),
            M::Div => self.divide(alu::div),
            M::Idiv => self.divide(alu::idiv),
            M::Xadd => self.xadd(),
            M::Cmpxchg => self.cmpxchg(),
            M::Cmpxchg8b => self.cmpxchg8b(),
            M::Cmpxchg16b => self.cmpxchg16b(),
            M::Adcx => self.add_with(rflags::CF),
            M::Adox => self.add_with(rflags::OF),
            M::Crc32 => self.crc32(),
            M::Aaa => self.ascii_adjust(|ax, digit| ax + digit),
            M::Aas => self.ascii_adjust(|ax, digit| ax.wrapping_sub(digit) & 0xffff),
            M::Daa => self.decimal_adjust(u64::wrapping_add, false),
            M::Das => self.decimal_adjust(u64::wrapping_sub, true),
            M::Aam => self.ascii_multiply(),
            M::Aad => self.ascii_divide(),
            M::Salc => self.carry_into_al(),
            M::Bound => self.bound(),

            M::Shl | M::Sal => self.shift(alu::shl),
            M::Shr => self.shift(alu::shr),
            M::Sar => self.shift(alu::sar),
            M::Rol => self.shift(alu::rol),
            M::Ror => self.shift(alu::ror),
            M::Rcl => self.shift(alu::rcl),
            M::Rcr => self.shift(alu::rcr),
            M::Shld => self.double_shift(alu::shld),
            M::Shrd => self.double_shift(alu::shrd),

            M::Bt => self.bit_test(None),
            M::Bts => self.bit_test(Some(|value, bit| value | bit)),
            M::Btr => self.bit_test(Some(|value, bit| value & !bit)),
            M::Btc => self.bit_test(Some(|value, bit| value ^ bit)),
            M::Bsf => self.bit_scan(u64::trailing_zeros),
            M::Bsr => self.bit_scan(u64::ilog2),
            // Without them, their encodings are those of `BSF` and `BSR`.
            M::Tzcnt if !self.cpu.cpuid.has(Feature::BMI1) => self.bit_scan(u64::trailing_zeros),
            M::Lzcnt if !self.cpu.cpuid.has(Feature::LZCNT) => self.bit_scan(u64::ilog2),
            M::Tzcnt => self.tzcnt(),
            M::Lzcnt => self.lzcnt(),
            M::Popcnt => self.requires(Feature::POPCNT).and_then(|()| self.popcnt()),

            M::Jmp if self.is_far() => self.jmp_far(),
            M::Call if self.is_far() => self.call_far(),
            M::Jmp => self.jmp(),
            M::Call => self.call(),
            M::Ret => self.ret(),
            M::Retf => self.ret_far(),
            M::Loop => self.loop_while(|_| true),
            M::Loope => self.loop_while(|flags| flags & rflags::ZF != 0),
            M::Loopne => self.loop_while(|flags| flags & rflags::ZF == 0),
            M::Jrcxz | M::Jecxz | M::Jcxz => self.jump_if_count_zero(),
            M::Int => self.interrupt(self.instruction.immediate8()),
            M::Int3 => self.interrupt(3),
            M::Int1 => self.icebp(),
            M::Into => self.interrupt_on_overflow(),
            M::Ud0 | M::Ud1 | M::Ud2 => Err(Exception::INVALID_OPCODE.into()),
            M::Iret | M::Iretd | M::Iretq => self.iret(),
            M::Syscall => self.syscall(),
            M::Sysret | M::Sysretq => self.sysret(),
            M::Sysenter => self.sysenter(),
            M::Sysexit | M::Sysexitq => self.sysexit(),

            M::Clc => self.change_flags(rflags::CF, 0),
            M::Stc => self.change_flags(rflags::CF, rflags::CF),
            M::Cmc => self.change_flags(rflags::CF, !self.cpu.regs.rflags),
            M::Cld => self.change_flags(rflags::DF, 0),
            M::Std => self.change_flags(rflags::DF, rflags::DF),
            M::Lahf => self.lahf(),
            M::Sahf => self.sahf(),
            M::Pushf | M::Pushfd | M::Pushfq => self.pushf(),
            M::Popf | M::Popfd | M::Popfq => self.popf(),
            M::Cli => self.set_interrupt_flag(0),
            M::Sti => self.set_interrupt_flag(rflags::IF),
            M::Clac => self.set_alignment_flag(0),
            M::Stac => self.set_alignment_flag(rflags::AC),

            M::In => self.port_in(),
            M::Out => self.port_out(),

            M::Vmcall | M::Vmmcall => self.hypercall(),
            M::Hlt => self.hlt(),
            M::Lgdt | M::Lidt => self.load_table(),
            M::Sgdt | M::Sidt => self.store_table(),
            M::Lldt | M::Ltr => self.load_system_segment(),
            M::Sldt | M::Str => self.store_system_segment(),
            M::Lmsw => self.lmsw(),
            M::Smsw => self.smsw(),
            M::Clts => self.clts(),
            M::Lar => self.lar(),
            M::Lsl => self.lsl(),
            M::Verr => self.verify(Descriptor::is_readable),
            M::Verw => self.verify(Descriptor::is_writable_data),
            M::Arpl => self.arpl(),
            M::Invlpg => self.invlpg(),
            M::Invpcid => self.invpcid(),
            M::Wbinvd | M::Invd => self.privileged(),
            M::Clflush => self.clflush(),
            M::Clwb => self.requires(Feature::CLWB).and_then(|()| self.clflush()),
            M::Clflushopt => self.requires(Feature::CLFLUSHOPT).and_then(|()| self.clflush()),
            M::Rdmsr => self.rdmsr(),
            M::Wrmsr => self.wrmsr(),
            M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => self.segment_base(),
            M::Swapgs => self.swapgs(),
            M::Cpuid => self.cpuid(),
            M::Rdtsc => self.rdtsc(),
            M::Rdtscp => self.rdtscp(),
            M::Rdpid => self.rdpid(),
            M::Rdpmc => self.rdpmc(),
            M::Monitor => self.monitor(),
            M::Mwait => self.mwait(),
            M::Rdpkru => self.rdpkru(),
            M::Wrpkru => self.wrpkru(),
            M::Xgetbv => self.xgetbv(),
            M::Xsetbv => self.xsetbv(),

            mnemonic => match Condition::of(mnemonic) {
                Some(condition) => self.conditional(condition),
                None => self.rest(mnemonic),
            },
        }
    }

    /// String instructions, BMI, vectors, and what this CPU does not have.
    fn rest(&mut self, mnemonic: M) -> Outcome {
        if let Some(outcome) = self.string() {
            return outcome;
        }
        let supported = matches!(self.cpu.code_width(), Width::Qword) || self.cpu.in_protected_mode();
        if supported && let Some(outcome) = self.bmi(mnemonic) {
            return outcome;
        }
        self.vector().unwrap_or_else(|| Err(self.absent()))
    }

    /// Of an instruction that is not here: #UD where processors without its feature raise it. Floating point and
    /// MMX are expected of every x86-64, so that they end in an exit, after #UD and #NM.
    fn absent(&self) -> Abort {
        use CpuidFeature::*;
        let code = self.instruction.code();
        if code.encoding() != EncodingKind::Legacy {
            return Exception::INVALID_OPCODE.into();
        }
        let system = &self.cpu.system;
        let features = code.cpuid_features();
        let has = |wanted: &[CpuidFeature]| features.iter().any(|feature| wanted.contains(feature));
        if has(&[FPU, FPU287, FPU387, FPU287XL_ONLY, FPU387SL_ONLY]) {
            let waits = system.cr0 & (cr0::TS | cr0::EM);
            return if waits != 0 { Exception::DEVICE_NOT_AVAILABLE.into() } else { Abort::Unimplemented };
        }
        if has(&[MMX, SSE, SSE2, FXSR, CMOV]) {
            let in_xmm = (0..self.instruction.op_count())
                .any(|operand| self.instruction.op_register(operand).is_xmm());
            if in_xmm && let Err(abort) = self.vectors_are_enabled() {
                return abort;
            }
            return match (system.cr0 & cr0::EM != 0, system.cr0 & cr0::TS != 0) {
                (true, _) => Exception::INVALID_OPCODE.into(),
                (_, true) => Exception::DEVICE_NOT_AVAILABLE.into(),
                _ => Abort::Unimplemented,
            };
        }
        if has(&[INTEL8086, INTEL186, INTEL286, INTEL386, INTEL486, X64]) {
            return Abort::Unimplemented;
        }
        Exception::INVALID_OPCODE.into()
    }

    /// `WAIT`: no floating-point exception is ever pending.
    fn wait(&self) -> Outcome {
        let waits = cr0::TS | cr0::MP;
        if self.cpu.system.cr0 & waits == waits {
            Err(Exception::DEVICE_NOT_AVAILABLE.into())
        } else {
            Ok(())
        }
    }

    /// Replaces the flags in `mask`.
    fn change_flags(&mut self, mask: u64, value: u64) -> Outcome {
        let flags = &mut self.cpu.regs.rflags;
        *flags = *flags & !mask | value & mask;
        Ok(())
    }

    fn has_flag(&self, flag: u64) -> bool {
        self.cpu.regs.rflags & flag != 0
    }
}
