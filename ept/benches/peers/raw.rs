//! Walks through raw pointers: `x86_64`'s, and one that checks nothing.
#![expect(unsafe_code, reason = "x86_64 and the floor of a walk read tables through raw pointers")]

use ept::{MemoryError, PhysMemory};
use x86_64::VirtAddr;
use x86_64::structures::paging::PageTable;
use x86_64::structures::paging::mapper::{OffsetPageTable, Translate, TranslateResult};

use crate::ram::{FRAME, Ram};

/// A walk that trusts every entry and knows 4 KiB pages alone: the floor.
#[derive(Clone, Copy)]
pub struct Raw {
    base: *const u8,
    root: u64,
}

impl Raw {
    pub fn new(ram: &Ram, root: u64) -> Self {
        Self { base: ram.cells.as_ptr().cast(), root }
    }

    #[inline]
    pub fn translate(&self, address: u64) -> u64 {
        const FRAME_BITS: u64 = 0x000f_ffff_ffff_f000;
        let mut entry = self.root;
        for shift in [39, 30, 21, 12] {
            entry = self.entry((entry & FRAME_BITS) + (address >> shift & 0x1ff) * 8);
        }
        entry & FRAME_BITS | address & (FRAME - 1)
    }

    #[inline]
    fn entry(&self, at: u64) -> u64 {
        // SAFETY: the benches walk tables that lie in `Ram` wholly, at addresses that are mapped.
        unsafe { self.base.add(at as usize).cast::<u64>().read() }
    }
}

/// Memory as all peers take it: every address is one of `Ram`.
impl PhysMemory for Raw {
    #[inline]
    fn read_entry(&self, address: u64) -> Result<u64, MemoryError> {
        Ok(self.entry(address))
    }

    fn compare_exchange(&self, address: u64, _: u64, _: u64) -> Result<bool, MemoryError> {
        Err(MemoryError::ReadOnly { address })
    }
}

/// `x86_64`'s view of the tables at `root`.
pub fn x86_64(ram: &Ram, root: u64) -> impl Fn(u64) -> TranslateResult {
    let base = ram.cells.as_ptr().cast_mut().cast::<u8>();
    // SAFETY: `Ram` is aligned, the root lies in it, and nothing writes tables while they are walked.
    let table = unsafe { &mut *base.add(root as usize).cast::<PageTable>() };
    // SAFETY: physical address p is at base + p.
    let mapper = unsafe { OffsetPageTable::new(table, VirtAddr::from_ptr(base)) };
    move |address| mapper.translate(VirtAddr::new(address))
}

/// Where a walk of `x86_64`'s has led.
pub fn end(found: &TranslateResult) -> u64 {
    match found {
        TranslateResult::Mapped { frame, offset, .. } => frame.start_address().as_u64() + offset,
        _ => 0,
    }
}
