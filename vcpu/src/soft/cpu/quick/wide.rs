//! The four sizes of an integer operand, as types: an operation is compiled once for each.

use memory_model::{RamPage, Word};

use crate::soft::cpu::alu::Width;

/// The size of an operand. Values are `u64`, zero-extended.
pub(super) trait Wide {
    type Word: Word;
    const WIDTH: Width;
    const BITS: u32 = Self::WIDTH.bits();
    const BYTES: u64 = Self::WIDTH.bytes() as u64;
    const MASK: u64 = Self::WIDTH.mask();

    fn load(page: &RamPage, offset: usize) -> u64;
    fn store(page: &RamPage, offset: usize, value: u64);
    fn sign_extend(value: u64) -> u64;

    /// What a register holds after a write of `value`: a 32-bit one clears its upper half, smaller ones leave the rest.
    #[inline(always)]
    fn merge(register: u64, value: u64) -> u64 {
        match Self::WIDTH {
            Width::Qword | Width::Dword => value,
            _ => register & !Self::MASK | value,
        }
    }
}

macro_rules! widths {
    ($($name:ident $unsigned:ty, $signed:ty, $width:ident;)*) => {$(
        pub(super) struct $name;
        impl Wide for $name {
            type Word = $unsigned;
            const WIDTH: Width = Width::$width;
            #[inline(always)]
            fn load(page: &RamPage, offset: usize) -> u64 {
                page.load::<$unsigned>(offset).into()
            }
            #[inline(always)]
            fn store(page: &RamPage, offset: usize, value: u64) {
                page.store(offset, value as $unsigned);
            }
            #[inline(always)]
            fn sign_extend(value: u64) -> u64 {
                value as $signed as i64 as u64
            }
        }
    )*};
}

widths! {
    W8 u8, i8, Byte;
    W16 u16, i16, Word;
    W32 u32, i32, Dword;
    W64 u64, i64, Qword;
}
