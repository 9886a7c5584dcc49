//! Single bits, bit scans and counts.

use iced_x86::OpKind;

use super::Outcome;
use crate::rflags;
use crate::soft::Bus;
use crate::soft::cpu::alu::{self, STATUS, Width};
use crate::soft::cpu::operands::{Place, memory_width};
use crate::soft::cpu::step::{Abort, Step};

impl<B: Bus> Step<'_, B> {
    /// `BT` and its kin: CF is the bit, `change` what becomes of it (value, mask of the bit).
    pub(super) fn bit_test(&mut self, change: Option<fn(u64, u64) -> u64>) -> Outcome {
        let place = self.bit_string_place()?;
        let width = place.width();
        let bit = 1 << (self.source(1, width)? & u64::from(width.bits() - 1));
        let old = if change.is_some() { self.read_to_modify(place)? } else { self.read(place)? };
        if let Some(change) = change {
            self.write(place, change(old, bit))?;
        }
        self.change_flags(rflags::CF, alu::flag(rflags::CF, old & bit != 0))
    }

    /// With a register as bit offset, memory is a bit string: the offset chooses the word too.
    fn bit_string_place(&mut self) -> Result<Place, Abort> {
        if self.instruction.op_kind(0) != OpKind::Memory || self.instruction.op_kind(1) != OpKind::Register {
            return self.place(0);
        }
        let width = memory_width(&self.instruction)?;
        let offset = width.sign_extend(self.source(1, width)?) as i64;
        let words = offset.div_euclid(width.bits().into());
        let bytes = words.wrapping_mul(width.bytes() as i64) as u64;
        Ok(Place::Memory(self.memory_operand_at(bytes), width))
    }

    /// `BSF`, `BSR`: of zero the SDM leaves the destination undefined; processors leave it alone.
    pub(super) fn bit_scan(&mut self, scan: fn(u64) -> u32) -> Outcome {
        let place = self.place(0)?;
        let value = self.source(1, place.width())?;
        if value != 0 {
            self.write(place, scan(value).into())?;
        }
        self.change_flags(rflags::ZF, alu::flag(rflags::ZF, value == 0))
    }

    pub(super) fn tzcnt(&mut self) -> Outcome {
        self.count_zeros(|width, value| value.trailing_zeros().min(width.bits()))
    }

    pub(super) fn lzcnt(&mut self) -> Outcome {
        self.count_zeros(|width, value| value.leading_zeros() - (64 - width.bits()))
    }

    fn count_zeros(&mut self, count: fn(Width, u64) -> u32) -> Outcome {
        let place = self.place(0)?;
        let value = self.source(1, place.width())?;
        let zeros = count(place.width(), value);
        self.write(place, zeros.into())?;
        let flags = alu::flag(rflags::CF, value == 0) | alu::flag(rflags::ZF, zeros == 0);
        self.change_flags(rflags::CF | rflags::ZF, flags)
    }

    pub(super) fn popcnt(&mut self) -> Outcome {
        let place = self.place(0)?;
        let value = self.source(1, place.width())?;
        self.write(place, value.count_ones().into())?;
        self.change_flags(STATUS, alu::flag(rflags::ZF, value == 0))
    }
}
