//! BMI1, BMI2, ADX and CRC32.

use iced_x86::Mnemonic as M;

use super::Outcome;
use crate::Gpr;
use crate::rflags::{CF, OF, SF, ZF};
use crate::soft::Bus;
use crate::soft::cpu::alu::{self, flag};
use crate::soft::cpu::cpuid::Feature;
use crate::soft::cpu::step::Step;

/// A result of one value: what comes out, and CF.
type Lowest = fn(u64) -> (u64, bool);

/// The polynomial of CRC32-C, its bits in reverse.
const CASTAGNOLI: u32 = 0x82f6_3b78;

impl<B: Bus> Step<'_, B> {
    /// `ANDN`: the complement of the first source, and the second.
    pub(super) fn andn(&mut self) -> Outcome {
        self.requires(Feature::BMI1)?;
        let place = self.place(0)?;
        let width = place.width();
        let result = !self.source(1, width)? & self.source(2, width)?;
        self.write(place, result)?;
        self.change_flags(SF | ZF | OF | CF, alu::sign_zero_parity(width, result))
    }

    /// `BLSI`, `BLSMSK`, `BLSR`: what the lowest bit set makes.
    pub(super) fn lowest_bit(&mut self, operation: Lowest) -> Outcome {
        self.requires(Feature::BMI1)?;
        let place = self.place(0)?;
        let width = place.width();
        let (result, carry) = operation(self.source(1, width)?);
        let result = result & width.mask();
        self.write(place, result)?;
        self.change_flags(SF | ZF | OF | CF, alu::sign_zero_parity(width, result) & !CF | flag(CF, carry))
    }

    /// `BEXTR`: a field of bits; start and length are the two low bytes of the last operand.
    pub(super) fn bextr(&mut self) -> Outcome {
        self.requires(Feature::BMI1)?;
        let place = self.place(0)?;
        let width = place.width();
        let (value, control) = (self.source(1, width)?, self.source(2, width)?);
        let (start, len) = (control as u32 & 0xff, control as u32 >> 8 & 0xff);
        let shifted = value.checked_shr(start).unwrap_or(0);
        let result = shifted & !u64::MAX.checked_shl(len).unwrap_or(0);
        self.write(place, result)?;
        self.change_flags(ZF | OF | CF, flag(ZF, result == 0))
    }

    /// `BZHI`: without the bits from an index on.
    pub(super) fn bzhi(&mut self) -> Outcome {
        self.requires(Feature::BMI2)?;
        let place = self.place(0)?;
        let width = place.width();
        let (value, index) = (self.source(1, width)?, self.source(2, width)? as u32 & 0xff);
        let result = value & !u64::MAX.checked_shl(index).unwrap_or(0);
        self.write(place, result)?;
        let flags = alu::sign_zero_parity(width, result) | flag(CF, index >= width.bits());
        self.change_flags(SF | ZF | OF | CF, flags)
    }

    /// `PDEP`, `PEXT`.
    pub(super) fn scatter_or_gather(&mut self, operation: fn(u64, u64) -> u64) -> Outcome {
        self.requires(Feature::BMI2)?;
        let place = self.place(0)?;
        let (value, mask) = (self.source(1, place.width())?, self.source(2, place.width())?);
        self.write(place, operation(value, mask))
    }

    /// `MULX`: RDX is the other factor, and no flag changes. The high half wins where both are one register.
    pub(super) fn mulx(&mut self) -> Outcome {
        self.requires(Feature::BMI2)?;
        let (high_place, low_place) = (self.place(0)?, self.place(1)?);
        let width = high_place.width();
        let (low, high, _) = alu::mul(width, self.gpr(Gpr::Rdx, width), self.source(2, width)?);
        self.write(low_place, low)?;
        self.write(high_place, high)
    }

    /// `RORX`, `SARX`, `SHLX`, `SHRX`: shifts that change no flag.
    pub(super) fn shift_without_flags(&mut self, operation: alu::Shift) -> Outcome {
        self.requires(Feature::BMI2)?;
        let place = self.place(0)?;
        let width = place.width();
        let (value, count) = (self.source(1, width)?, self.source(2, width)?);
        let count = count as u32 & (width.bits() - 1);
        self.write(place, operation(width, value, count, 0).0)
    }

    /// `ADCX`, `ADOX`: an addition whose carry is one flag, and that leaves all others alone.
    pub(super) fn add_with(&mut self, carry: u64) -> Outcome {
        self.requires(Feature::ADX)?;
        let place = self.place(0)?;
        let width = place.width();
        let source = self.source(1, width)?;
        let old = self.read(place)?;
        let (sum, flags) = alu::adc(width, old, source, self.has_flag(carry));
        self.write(place, sum)?;
        self.change_flags(carry, flag(carry, flags & CF != 0))
    }

    pub(super) fn crc32(&mut self) -> Outcome {
        self.requires(Feature::SSE4_2)?;
        let (place, source) = (self.place(0)?, self.place(1)?);
        let data = self.read(source)?;
        let mut crc = self.read(place)? as u32;
        for byte in &data.to_le_bytes()[..source.width().bytes()] {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ if crc & 1 != 0 { CASTAGNOLI } else { 0 };
            }
        }
        self.write(place, crc.into())
    }

    /// The instructions of this file that VEX encodes.
    pub(super) fn bmi(&mut self, mnemonic: M) -> Option<Outcome> {
        Some(match mnemonic {
            M::Andn => self.andn(),
            M::Bextr => self.bextr(),
            M::Blsi => self.lowest_bit(|value| (value & value.wrapping_neg(), value != 0)),
            M::Blsmsk => self.lowest_bit(|value| (value ^ value.wrapping_sub(1), value == 0)),
            M::Blsr => self.lowest_bit(|value| (value & value.wrapping_sub(1), value == 0)),
            M::Bzhi => self.bzhi(),
            M::Pdep => self.scatter_or_gather(scatter),
            M::Pext => self.scatter_or_gather(gather),
            M::Mulx => self.mulx(),
            M::Rorx => self.shift_without_flags(alu::ror),
            M::Sarx => self.shift_without_flags(alu::sar),
            M::Shlx => self.shift_without_flags(alu::shl),
            M::Shrx => self.shift_without_flags(alu::shr),
            _ => return None,
        })
    }
}

/// The bits of `mask`, lowest first.
fn places(mut mask: u64) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let lowest = mask & mask.wrapping_neg();
        mask ^= lowest;
        (lowest != 0).then_some(lowest)
    })
}

/// The low bits of `value`, at the places of `mask`.
fn scatter(value: u64, mask: u64) -> u64 {
    places(mask).enumerate().filter(|(i, _)| value >> i & 1 != 0).map(|(_, place)| place).sum()
}

/// The bits of `value` at the places of `mask`, as low bits.
fn gather(value: u64, mask: u64) -> u64 {
    places(mask).enumerate().filter(|(_, place)| value & place != 0).map(|(i, _)| 1 << i).sum()
}
