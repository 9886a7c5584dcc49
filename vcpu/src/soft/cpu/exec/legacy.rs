//! What 64-bit mode has given up: decimal adjustment, `BOUND`, all registers at once. And `ENTER`.

use iced_x86::Code;

use super::Outcome;
use crate::rflags::{AF, CF, OF};
use crate::soft::cpu::alu::{self, STATUS, Width, flag};
use crate::soft::cpu::exceptions::Exception;
use crate::soft::cpu::segments::{Logical, SegmentName};
use crate::soft::cpu::step::Step;
use crate::soft::{AccessKind, Bus};
use crate::{Gpr, rflags};

/// The registers of `PUSHA`, in the order in which it pushes them.
const ALL: [Gpr; 8] = [Gpr::Rax, Gpr::Rcx, Gpr::Rdx, Gpr::Rbx, Gpr::Rsp, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi];

/// A word of `size` bytes as it is in memory once `words` have been pushed: the last byte of the first of them lies
/// `above` bytes behind the word's first byte.
fn with_pushed(word: u64, size: u64, above: u64, words: &[u64]) -> u64 {
    let mut bytes = word.to_le_bytes();
    for (index, byte) in (0..).zip(&mut bytes[..size as usize]) {
        let below = above.wrapping_sub(index);
        if let Some(pushed) = words.get((below / size) as usize) {
            *byte = pushed.to_le_bytes()[(size - 1 - below % size) as usize];
        }
    }
    u64::from_le_bytes(bytes)
}

impl<B: Bus> Step<'_, B> {
    pub(super) fn push_all_registers(&mut self, width: Width) -> Outcome {
        let values = ALL.map(|register| self.gpr(register, width));
        self.push_all(width, &values)
    }

    /// The value of the stack pointer is passed over.
    pub(super) fn pop_all_registers(&mut self, width: Width) -> Outcome {
        let mut values = [0; 8];
        for value in values.iter_mut().rev() {
            *value = self.pop(width)?;
        }
        for (register, value) in ALL.into_iter().zip(values).filter(|&(register, _)| register != Gpr::Rsp) {
            self.set_gpr(register, width, value);
        }
        Ok(())
    }

    /// `ENTER` (SDM vol. 2A): RBP, then the frame pointers of the levels around, then room.
    pub(super) fn enter(&mut self) -> Outcome {
        let width = match self.instruction.code() {
            Code::Enterw_imm16_imm8 => Width::Word,
            Code::Enterd_imm16_imm8 => Width::Dword,
            _ => Width::Qword,
        };
        let (room, level) = (self.instruction.immediate16(), self.instruction.immediate8_2nd() & 31);
        let stack = self.cpu.stack_width();
        let size = width.bytes() as u64;
        let frame = self.gpr(Gpr::Rsp, stack).wrapping_sub(size) & stack.mask();
        // The first push is the first that may fail.
        self.check_access(Logical::stack(frame), width.bytes(), AccessKind::Write)?;
        let mut words = [0; 33];
        words[0] = self.gpr(Gpr::Rbp, width);
        let mut count = 1;
        for outer in 1..u64::from(level) {
            let at = self.gpr(Gpr::Rbp, stack).wrapping_sub(outer * size) & stack.mask();
            let stored = self.load(Logical::stack(at), width, AccessKind::Read)?;
            // It may overlap what has been pushed, though nothing is in memory yet.
            let above = (frame.wrapping_add(size - 1)).wrapping_sub(at) & stack.mask();
            words[count] = with_pushed(stored, size, above, &words[..count]);
            count += 1;
        }
        if level > 0 {
            words[count] = frame;
            count += 1;
        }
        let pushed = frame.wrapping_sub((count as u64 - 1) * size);
        let pointer = pushed.wrapping_sub(room.into()) & stack.mask();
        // The new top of the stack must be writable, though nothing is written there.
        self.check_access(Logical::stack(pointer), width.bytes(), AccessKind::Write)?;
        self.push_all(width, &words[..count])?;
        self.set_gpr(Gpr::Rbp, width, frame);
        self.set_gpr(Gpr::Rsp, stack, pointer);
        Ok(())
    }

    /// `BOUND`: #BR unless a signed index lies between the two numbers in memory.
    pub(super) fn bound(&mut self) -> Outcome {
        let place = self.place(0)?;
        let width = place.width();
        let index = width.sign_extend(self.read(place)?) as i64;
        let mut limits = [0; 2];
        for (limit, offset) in limits.iter_mut().zip([0, width.bytes() as u64]) {
            let value = self.load(self.memory_operand_at(offset), width, AccessKind::Read)?;
            *limit = width.sign_extend(value) as i64;
        }
        let [low, high] = limits;
        if (low..=high).contains(&index) { Ok(()) } else { Err(Exception::BOUND.into()) }
    }

    /// `AAA` and `AAS`: one decimal digit in AL, the carry in AH.
    pub(super) fn ascii_adjust(&mut self, adjust: fn(u64, u64) -> u64) -> Outcome {
        let ax = self.gpr(Gpr::Rax, Width::Word);
        let carry = ax & 0xf > 9 || self.has_flag(AF);
        let ax = if carry { adjust(ax, 0x106) } else { ax };
        self.set_gpr(Gpr::Rax, Width::Word, ax & 0xff0f);
        let others = alu::sign_zero_parity(Width::Byte, ax & 0xf);
        self.change_flags(STATUS, others | flag(AF | CF, carry))
    }

    /// `DAA` and `DAS`: two decimal digits in AL.
    pub(super) fn decimal_adjust(&mut self, adjust: fn(u64, u64) -> u64, borrows: bool) -> Outcome {
        let old = self.gpr(Gpr::Rax, Width::Byte);
        let old_carry = self.has_flag(CF);
        let low = old & 0xf > 9 || self.has_flag(AF);
        let high = old > 0x99 || old_carry;
        let mut al = if low { adjust(old, 6) } else { old };
        // The low digit of `DAS` may borrow by itself.
        let carry = high || borrows && low && old < 6;
        if high {
            al = adjust(al, 0x60);
        }
        self.set_gpr(Gpr::Rax, Width::Byte, al & 0xff);
        let flags = alu::sign_zero_parity(Width::Byte, al & 0xff) | flag(AF, low) | flag(CF, carry);
        self.change_flags(STATUS & !OF, flags)
    }

    /// `AAM`: AL in two digits of a base.
    pub(super) fn ascii_multiply(&mut self) -> Outcome {
        let base = u64::from(self.instruction.immediate8());
        let al = self.gpr(Gpr::Rax, Width::Byte);
        let high = al.checked_div(base).ok_or(Exception::DIVIDE)?;
        let low = al % base;
        self.set_gpr(Gpr::Rax, Width::Word, high << 8 | low);
        self.change_flags(STATUS, alu::sign_zero_parity(Width::Byte, low))
    }

    /// `AAD`: two digits of a base into AL.
    pub(super) fn ascii_divide(&mut self) -> Outcome {
        let base = u64::from(self.instruction.immediate8());
        let ax = self.gpr(Gpr::Rax, Width::Word);
        let (result, flags) = alu::add(Width::Byte, ax & 0xff, (ax >> 8).wrapping_mul(base) & 0xff, false);
        self.set_gpr(Gpr::Rax, Width::Word, result);
        self.change_flags(STATUS, flags)
    }

    /// `SALC`: CF into all of AL.
    pub(super) fn carry_into_al(&mut self) -> Outcome {
        self.set_gpr(Gpr::Rax, Width::Byte, flag(0xff, self.has_flag(CF)));
        Ok(())
    }

    /// `INTO`.
    pub(super) fn interrupt_on_overflow(&mut self) -> Outcome {
        if self.has_flag(rflags::OF) { self.interrupt(4) } else { Ok(()) }
    }

    /// `LDS`, `LES`, `LFS`, `LGS`, `LSS`: a segment register and a general one from memory.
    pub(super) fn load_far_pointer(&mut self, name: SegmentName) -> Outcome {
        let place = self.place(0)?;
        let (selector, offset) = self.far_pointer(place.width())?;
        self.load_segment(name, selector)?;
        self.write(place, offset)
    }
}
