//! The dirty log as a bitmap: one bit a page, read and cleared by ioctls (rules D1 to D3).

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE};

use super::table::split_number;
use super::{Ioctls, KernelMemslots, KvmArch, Memslot, USER_MEM_SLOTS};
use crate::{Errno, SlotId};

/// One bit for each page of a slot; none is ever set past its end.
#[derive(Debug)]
pub(super) struct DirtyBitmap(Box<[AtomicU64]>);

impl DirtyBitmap {
    /// All clear or all set. A slot can be long enough that there is no memory for its bitmap.
    pub(super) fn new(pages: u64, set: bool) -> Result<Self, Errno> {
        let words = usize::try_from(words_for(pages)).map_err(|_| Errno::ENOMEM)?;
        let mut bitmap = Vec::new();
        bitmap.try_reserve_exact(words).map_err(|_| Errno::ENOMEM)?;
        bitmap.resize_with(words, || AtomicU64::new(if set { u64::MAX } else { 0 }));
        let past_end = (64 - pages % 64) % 64;
        if let Some(last) = bitmap.last_mut() {
            *last.get_mut() &= u64::MAX >> past_end;
        }
        Ok(Self(bitmap.into()))
    }

    pub(super) fn set(&self, page: u64) {
        self.0[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::AcqRel);
    }
}

fn words_for(pages: u64) -> u64 {
    pages.div_ceil(64)
}

/// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`, as it was enabled.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ManualProtect(u64);

impl ManualProtect {
    const ENABLE: u64 = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE as u64;
    const INITIALLY_SET: u64 = KVM_DIRTY_LOG_INITIALLY_SET as u64;

    pub(super) fn enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    pub(super) fn initially_set(self) -> bool {
        self.0 & Self::INITIALLY_SET != 0
    }
}

/// A call of one of the two ioctls.
struct LogCall<'a> {
    kernel: &'a KernelMemslots,
    slot: u32,
    first_page: u64,
    num_pages: u64,
}

/// A condition and what it gives.
type Row = (&'static str, Errno, fn(&LogCall) -> bool);

const ONLY_RING: Row = ("the VM logs into rings only", Errno::ENXIO, |call| !call.kernel.uses_bitmaps());
const NO_NUMBER: Row = ("no such address space or slot number", Errno::EINVAL, |call| {
    let (as_id, id) = split_number(call.slot);
    as_id >= call.kernel.caps.address_spaces || id.0 >= USER_MEM_SLOTS
});
const NO_BITMAP: Row = ("no slot, or it does not log", Errno::ENOENT, |call| call.log().is_none());

/// `KVM_GET_DIRTY_LOG`, in order; a buffer that is too short comes last.
static GET: [Row; 3] = [ONLY_RING, NO_NUMBER, NO_BITMAP];

/// `KVM_CLEAR_DIRTY_LOG`, in order; a bitmap that is too short comes last.
static CLEAR: [Row; 6] = [
    ONLY_RING,
    NO_NUMBER,
    ("the first page is no multiple of 64", Errno::EINVAL, |call| !call.first_page.is_multiple_of(64)),
    NO_BITMAP,
    ("pages past the slot's end", Errno::EINVAL, |call| call.pages_behind().is_none()),
    ("not a multiple of 64 pages, short of the slot's end", Errno::EINVAL, |call| {
        !call.num_pages.is_multiple_of(64) && call.pages_behind() != Some(0)
    }),
];

impl<'a> LogCall<'a> {
    fn check(&self, rows: &[Row]) -> Result<(&'a DirtyBitmap, Memslot), Errno> {
        match rows.iter().find(|(_, _, applies)| applies(self)) {
            Some((_, errno, _)) => Err(*errno),
            None => self.log().ok_or(Errno::ENOENT),
        }
    }

    fn log(&self) -> Option<(&'a DirtyBitmap, Memslot)> {
        let (as_id, id) = split_number(self.slot);
        let space = self.kernel.spaces.get(as_id as usize)?;
        Some((space.bitmaps.get(&id)?, *space.active().slots().by_id(id)?))
    }

    /// Pages of the slot behind those of the call.
    fn pages_behind(&self) -> Option<u64> {
        let (_, slot) = self.log()?;
        slot.npages().checked_sub(self.first_page)?.checked_sub(self.num_pages)
    }
}

impl KernelMemslots {
    /// `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` with these flags. From then on
    /// [`get_dirty_log`](Self::get_dirty_log) only reads, and with INITIALLY_SET a log that starts has all pages
    /// dirty; logs that are there already stay as they are (rule D2). EINVAL for INITIALLY_SET alone, or a flag that
    /// is not known.
    pub fn enable_manual_protect(&mut self, flags: u64) -> Result<(), Errno> {
        let allowed = match flags & ManualProtect::ENABLE {
            0 => 0,
            _ => ManualProtect::ENABLE | ManualProtect::INITIALLY_SET,
        };
        if flags & !allowed != 0 {
            return Err(Errno::EINVAL);
        }
        self.manual_protect = ManualProtect(flags);
        Ok(())
    }

    /// The log of a slot as it is, one bit a page, and it stays so; `None` if the slot has no bitmap.
    pub fn peek_dirty_log(&self, slot: SlotId) -> Option<Vec<u64>> {
        let bitmap = self.space(0).bitmaps.get(&slot)?;
        Some(bitmap.0.iter().map(|word| word.load(Ordering::Acquire)).collect())
    }

    /// Whether a log that starts has all its pages dirty, so that there is nothing to write-protect
    /// (`kvm_dirty_log_manual_protect_and_init_set`).
    pub fn logs_start_dirty(&self) -> bool {
        self.manual_protect.initially_set()
    }
}

impl<A: KvmArch> Ioctls<'_, A> {
    /// `KVM_GET_DIRTY_LOG`: writes the slot's bitmap, rounded up to whole words, into `bitmap`. With manual protect
    /// that is all; without, it clears the log, and the pages' next writes fault again (rule D1).
    ///
    /// EFAULT if `bitmap` is too short. Without manual protect the bits are lost then, as they are in the kernel,
    /// and `bitmap` does not have them either.
    pub fn get_dirty_log(&mut self, slot: u32, bitmap: &mut [u64]) -> Result<(), Errno> {
        let call = LogCall { kernel: self.kernel, slot, first_page: 0, num_pages: 0 };
        let (log, slot) = call.check(&GET)?;
        let mut room = bitmap.get_mut(..log.0.len());
        for (index, word) in log.0.iter().enumerate() {
            let dirty = if self.kernel.manual_protect.enabled() {
                word.load(Ordering::Acquire)
            } else {
                // Most words of a log are empty, and a load is cheaper than a swap.
                let dirty = word.load(Ordering::Relaxed) != 0;
                let mask = if dirty { word.swap(0, Ordering::AcqRel) } else { 0 };
                if mask != 0 {
                    self.arch.enable_log_dirty(&slot, index as u64 * 64, mask);
                }
                mask
            };
            if let Some(room) = &mut room {
                room[index] = dirty;
            }
        }
        room.map(drop).ok_or(Errno::EFAULT)
    }

    /// `KVM_CLEAR_DIRTY_LOG`: clears the pages whose bits are set in `bitmap`, bit 0 for `first_page`, and the next
    /// writes to those that were dirty fault again. Needs no manual protect; `num_pages` can be 0; bits past the
    /// slot's end count for nothing (rule D3). EFAULT if `bitmap` is too short.
    pub fn clear_dirty_log(
        &mut self,
        slot: u32,
        first_page: u64,
        num_pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        let num_pages = u64::from(num_pages);
        let call = LogCall { kernel: self.kernel, slot, first_page, num_pages };
        let (log, slot) = call.check(&CLEAR)?;
        let masks = bitmap.get(..words_for(num_pages) as usize).ok_or(Errno::EFAULT)?;
        let first_word = first_page / 64;
        for (index, mask) in (first_word..).zip(masks).filter(|(_, mask)| **mask != 0) {
            let mask = mask & log.0[index as usize].fetch_and(!mask, Ordering::AcqRel);
            if mask != 0 {
                self.arch.enable_log_dirty(&slot, index * 64, mask);
            }
        }
        Ok(())
    }
}
