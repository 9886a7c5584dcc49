//! The in-process kernel's dirty logs as a manager uses them.

use kvm_bindings::{KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE};

use super::{Ioctls, KernelMemslots, KvmArch, split_number};
use crate::{DirtyLog, DirtyMethod, Errno, SlotError, SlotId};

impl KernelMemslots {
    /// How pages are logged.
    pub(super) fn method(&self) -> DirtyMethod {
        match (self.rings.bytes, self.manual_protect) {
            (0, manual) if manual.enabled() => {
                DirtyMethod::ManualProtect { initially_set: manual.initially_set() }
            }
            (0, _) => DirtyMethod::Bitmap,
            (bytes, _) => DirtyMethod::Ring { bytes: bytes as u32 },
        }
    }
}

impl<A: KvmArch> DirtyLog for Ioctls<'_, A> {
    fn set_dirty_method(&mut self, wanted: DirtyMethod) -> Result<(), SlotError> {
        if !self.kernel.method().gives_way_to(wanted)? {
            return Ok(());
        }
        let answer = match wanted {
            DirtyMethod::Bitmap => Ok(()),
            DirtyMethod::ManualProtect { initially_set } => {
                let initially_set = if initially_set { KVM_DIRTY_LOG_INITIALLY_SET } else { 0 };
                self.kernel
                    .enable_manual_protect((KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | initially_set).into())
            }
            DirtyMethod::Ring { bytes } => self.kernel.enable_dirty_ring(bytes.into()),
        };
        answer.map_err(|errno| SlotError::DirtyMethodRefused { wanted, errno })
    }

    fn get_dirty_log(&mut self, slot: SlotId, bitmap: &mut Vec<u64>) -> Result<(), Errno> {
        let pages = self.kernel.slots().by_id(slot).ok_or(Errno::ENOENT)?.npages();
        bitmap.clear();
        bitmap.resize(pages.div_ceil(64) as usize, 0);
        Ioctls::get_dirty_log(self, slot.0, bitmap)
    }

    fn clear_dirty_log(
        &mut self,
        slot: SlotId,
        first_page: u64,
        num_pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        Ioctls::clear_dirty_log(self, slot.0, first_page, num_pages, bitmap)
    }

    fn reap_dirty_rings(&mut self, found: &mut dyn FnMut(SlotId, u64)) -> Result<(), Errno> {
        // Every reaping ends with a reset, so whatever is dirty now was written since: the order is all one.
        for ring in &self.kernel.rings.rings {
            for index in 0..ring.len() {
                if let Some(gfn) = ring.dirty_entry(index) {
                    let (as_id, id) = split_number(gfn.slot);
                    if as_id == 0 {
                        found(id, gfn.offset);
                    }
                    ring.harvested(index);
                }
            }
        }
        self.reset_dirty_rings().map(drop)
    }
}
