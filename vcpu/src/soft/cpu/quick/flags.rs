//! Status flags that are worked out when somebody asks.

use super::wide::Wide;
use crate::rflags::{AF, CF, OF, PF, SF, ZF};
use crate::soft::cpu::alu::{STATUS, flag};

/// The status flags: as bits, or as the result they come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flags {
    /// `RFLAGS`; its status bits count unless `lazy`.
    bits: u64,
    lazy: bool,
    /// The result, with its sign copied upwards: ZF, SF and PF.
    result: u64,
    /// Bit 63 is CF, the carry out of the result's top bit; bit 62 the carry into it, so that OF is whether they
    /// differ; bit 3 is AF.
    carries: u64,
}

impl Flags {
    pub fn new(rflags: u64) -> Self {
        Self { bits: rflags, lazy: false, result: 0, carries: 0 }
    }

    /// `RFLAGS`, with all flags in it.
    pub fn bits(&self) -> u64 {
        if !self.lazy {
            return self.bits;
        }
        let parity = (self.result as u8).count_ones().is_multiple_of(2);
        self.bits & !STATUS
            | flag(CF, self.carry())
            | flag(PF, parity)
            | flag(AF, self.carries & 8 != 0)
            | flag(ZF, self.result == 0)
            | flag(SF, (self.result as i64) < 0)
            | flag(OF, self.overflow())
    }

    /// All of them at once.
    pub fn set(&mut self, rflags: u64) {
        *self = Self::new(rflags);
    }

    /// Those of a sum or difference, both zero-extended; bit `n` of `carries` is the carry out of bit `n`.
    #[inline(always)]
    pub fn arithmetic<W: Wide>(&mut self, result: u64, carries: u64) {
        self.put::<W>(result, carries << (64 - W::BITS) | carries & 8);
    }

    /// Those of AND, OR, XOR and TEST.
    #[inline(always)]
    pub fn logic<W: Wide>(&mut self, result: u64) {
        self.put::<W>(result, 0);
    }

    /// With CF and OF given and AF clear.
    #[inline(always)]
    pub fn shifted<W: Wide>(&mut self, result: u64, carry: bool, overflow: bool) {
        self.put::<W>(result, u64::from(carry) << 63 | u64::from(carry != overflow) << 62);
    }

    /// Those of INC and DEC: CF stays.
    #[inline(always)]
    pub fn counted<W: Wide>(&mut self, result: u64, carries: u64) {
        let (kept, tops) = (self.carry(), carries << (64 - W::BITS));
        let overflow = (tops ^ tops << 1) >> 63 != 0;
        self.put::<W>(result, u64::from(kept) << 63 | u64::from(kept != overflow) << 62 | carries & 8);
    }

    #[inline(always)]
    fn put<W: Wide>(&mut self, result: u64, carries: u64) {
        self.lazy = true;
        self.result = W::sign_extend(result);
        self.carries = carries;
    }

    #[inline(always)]
    pub fn carry(&self) -> bool {
        if self.lazy { self.carries >> 63 != 0 } else { self.bits & CF != 0 }
    }

    #[inline(always)]
    fn overflow(&self) -> bool {
        if self.lazy { (self.carries ^ self.carries << 1) >> 63 != 0 } else { self.bits & OF != 0 }
    }

    #[inline(always)]
    fn zero(&self) -> bool {
        if self.lazy { self.result == 0 } else { self.bits & ZF != 0 }
    }

    #[inline(always)]
    fn sign(&self) -> bool {
        if self.lazy { (self.result as i64) < 0 } else { self.bits & SF != 0 }
    }

    fn parity(&self) -> bool {
        self.bits() & PF != 0
    }

    /// Whether condition `CODE` holds: the low four bits of Jcc, SETcc and CMOVcc (SDM vol. 1, appendix B).
    #[inline(always)]
    pub fn holds<const CODE: u8>(&self) -> bool {
        let holds = match CODE >> 1 {
            0 => self.overflow(),
            1 => self.carry(),
            2 => self.zero(),
            3 => self.carry() || self.zero(),
            4 => self.sign(),
            5 => self.parity(),
            6 => self.sign() != self.overflow(),
            _ => self.sign() != self.overflow() || self.zero(),
        };
        holds != (CODE & 1 != 0)
    }
}
