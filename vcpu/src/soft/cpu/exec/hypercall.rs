//! `VMCALL` and `VMMCALL`: the calls of KVM that concern its interrupt controllers. A machine without them has neither
//! instruction.

use super::Outcome;
use crate::Gpr;
use crate::soft::Bus;
use crate::soft::cpu::alu::Width;
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::step::Step;

/// `KVM_HC_SEND_IPI`.
const SEND_IPI: u64 = 10;

/// Answers, as negative numbers.
const EPERM: i64 = -1;
const EINVAL: i64 = -22;
const ENOSYS: i64 = -1000;

impl<B: Bus> Step<'_, B> {
    /// RAX has the number, and gets the answer; RBX, RCX, RDX and RSI have the arguments.
    pub(super) fn hypercall(&mut self) -> Outcome {
        let width = if self.cpu.in_64_bit_mode() { Width::Qword } else { Width::Dword };
        let [number, low, high, first, icr] =
            [Gpr::Rax, Gpr::Rbx, Gpr::Rcx, Gpr::Rdx, Gpr::Rsi].map(|register| self.gpr(register, width));
        // Of each word of the bitmap, as many as a register has bits.
        let targets = u128::from(low) | u128::from(high) << (8 * width.bytes());
        let is_kernel = self.cpu.system.cpl() == 0;
        let answer = self.with_interrupts(|interrupts| match number {
            _ if !is_kernel => EPERM,
            SEND_IPI => interrupts.send_ipis(targets, first as u32, icr as u32).unwrap_or(EINVAL),
            _ => ENOSYS,
        });
        let answer = answer.ok_or(Exception::INVALID_OPCODE)?;
        self.set_gpr(Gpr::Rax, width, answer as u64);
        Ok(())
    }
}
