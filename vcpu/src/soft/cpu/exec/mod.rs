//! The instructions, by group. [`Step::execute`] is the table of them all.

mod arithmetic;
mod bits;
mod control;
mod io;
mod moves;
mod shifts;
mod strings;
mod system;

use iced_x86::Mnemonic as M;

pub(super) use self::control::Condition;
use super::alu;
use super::exceptions::Exception;
use super::step::{Abort, Step};
use crate::rflags;
use crate::soft::Bus;

/// What executing gives: nothing, or the reason why the instruction is not finished.
type Outcome = Result<(), Abort>;

impl<B: Bus> Step<'_, B> {
    /// Executes `self.instruction`; RIP is already past it.
    pub(super) fn execute(&mut self) -> Outcome {
        match self.instruction.mnemonic() {
            M::Mov => self.mov(),
            M::Movzx => self.movzx(),
            M::Movsx | M::Movsxd => self.movsx(),
            M::Movbe => self.movbe(),
            M::Lea => self.lea(),
            M::Xchg => self.xchg(),
            M::Bswap => self.bswap(),
            M::Xlatb => self.xlat(),
            M::Push => self.push_operand(),
            M::Pop => self.pop_operand(),
            M::Leave => self.leave(),
            M::Cbw | M::Cwde | M::Cdqe => self.extend_accumulator(),
            M::Cwd | M::Cdq | M::Cqo => self.sign_into_rdx(),
            M::Nop | M::Reservednop | M::Pause | M::Endbr64 | M::Endbr32 | M::Cldemote => Ok(()),
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
            M::Tzcnt => self.tzcnt(),
            M::Lzcnt => self.lzcnt(),
            M::Popcnt => self.popcnt(),

            M::Jmp => self.jmp(),
            M::Call => self.call(),
            M::Ret => self.ret(),
            M::Loop => self.loop_while(|_| true),
            M::Loope => self.loop_while(|flags| flags & rflags::ZF != 0),
            M::Loopne => self.loop_while(|flags| flags & rflags::ZF == 0),
            M::Jrcxz | M::Jecxz => self.jump_if_count_zero(),
            M::Int => self.interrupt(self.instruction.immediate8()),
            M::Int3 => self.interrupt(3),
            M::Ud0 | M::Ud1 | M::Ud2 => Err(Exception::INVALID_OPCODE.into()),
            M::Iretq => self.iret(),

            M::Clc => self.change_flags(rflags::CF, 0),
            M::Stc => self.change_flags(rflags::CF, rflags::CF),
            M::Cmc => self.change_flags(rflags::CF, !self.cpu.regs.rflags),
            M::Cld => self.change_flags(rflags::DF, 0),
            M::Std => self.change_flags(rflags::DF, rflags::DF),
            M::Lahf => self.lahf(),
            M::Sahf => self.sahf(),
            M::Pushf | M::Pushfq => self.pushf(),
            M::Popf | M::Popfq => self.popf(),
            M::Cli => self.set_interrupt_flag(0),
            M::Sti => self.set_interrupt_flag(rflags::IF),
            M::Clac => self.set_alignment_flag(0),
            M::Stac => self.set_alignment_flag(rflags::AC),

            M::In => self.port_in(),
            M::Out => self.port_out(),

            M::Hlt => self.hlt(),
            M::Lgdt | M::Lidt => self.load_table(),
            M::Sgdt | M::Sidt => self.store_table(),
            M::Ltr => self.ltr(),
            M::Str => self.str(),
            M::Clts => self.clts(),
            M::Invlpg => self.invlpg(),
            M::Wbinvd | M::Invd => self.privileged(),
            M::Clflush => self.clflush(),
            M::Rdmsr => self.rdmsr(),
            M::Wrmsr => self.wrmsr(),
            M::Swapgs => self.swapgs(),
            M::Cpuid => self.cpuid(),
            M::Rdtsc => self.rdtsc(),

            mnemonic => match Condition::of(mnemonic) {
                Some(condition) => self.conditional(condition),
                None => self.string(),
            },
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
