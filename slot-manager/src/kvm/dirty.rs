//! The dirty logs of a real VM.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, kvm_enable_cap,
};
use kvm_ioctls::VmFd;

use super::ring::DirtyRing;
use super::{Capability, KvmSlots, ext};
use crate::{DirtyLog, DirtyMethod, Errno, SlotError, SlotId};

/// The dirty rings of a VM's vCPUs. Clones are handles to the same rings: whoever makes vCPUs holds one.
#[derive(Clone, Debug, Default)]
pub struct KvmRings {
    shared: Arc<Mutex<Rings>>,
}

#[derive(Debug, Default)]
struct Rings {
    /// The size of each; 0 as long as the VM has none.
    bytes: u32,
    rings: Vec<DirtyRing>,
    /// What was harvested for an address space that was not asked for: kernel slot number and page.
    others: BTreeSet<(u32, u64)>,
}

impl KvmRings {
    /// Maps the ring of a new vCPU, before it runs. Does nothing if the VM has no rings.
    pub fn add_vcpu(&self, vcpu: &impl AsRawFd) -> Result<(), SlotError> {
        let mut shared = self.lock();
        if shared.bytes != 0 {
            let ring = DirtyRing::map(vcpu, shared.bytes);
            shared.rings.push(ring.map_err(|errno| SlotError::DirtyRings { errno })?);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Rings> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KvmSlots {
    /// The rings that [`DirtyMethod::Ring`] reads.
    pub fn dirty_rings(&self) -> &KvmRings {
        &self.rings
    }

    /// The method in force.
    pub(super) fn logged_by(&self) -> DirtyMethod {
        match self.rings.lock().bytes {
            0 => self.method,
            bytes => DirtyMethod::Ring { bytes },
        }
    }
}

impl DirtyLog for KvmSlots {
    fn set_dirty_method(&mut self, wanted: DirtyMethod) -> Result<(), SlotError> {
        if !self.logged_by().gives_way_to(wanted)? {
            return Ok(());
        }
        let (capability, argument) = match wanted {
            DirtyMethod::Bitmap => return Ok(()),
            DirtyMethod::ManualProtect { initially_set } => {
                Capability::MANUAL_DIRTY_LOG_PROTECT2.require(&self.vm)?;
                let initially_set = if initially_set { KVM_DIRTY_LOG_INITIALLY_SET } else { 0 };
                (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | initially_set)
            }
            DirtyMethod::Ring { bytes } => {
                Capability::DIRTY_LOG_RING.require(&self.vm)?;
                (KVM_CAP_DIRTY_LOG_RING_ACQ_REL, bytes)
            }
        };
        enable(&self.vm, capability, argument)
            .map_err(|errno| SlotError::DirtyMethodRefused { wanted, errno })?;
        match wanted {
            DirtyMethod::Ring { bytes } => self.rings.lock().bytes = bytes,
            _ => self.method = wanted,
        }
        Ok(())
    }

    fn get_dirty_log(&mut self, id: SlotId, bitmap: &mut Vec<u64>) -> Result<(), Errno> {
        let pages = self.lent.get(&id).ok_or(Errno::ENOENT)?.pages;
        bitmap.clear();
        bitmap.resize(pages.div_ceil(64) as usize, 0);
        // SAFETY: `lent` has the length that the kernel was given for this slot, and only `execute`
        // changes either.
        unsafe { ext::get_dirty_log(&self.vm, self.number(id), pages, bitmap) }
    }

    fn clear_dirty_log(
        &mut self,
        id: SlotId,
        first_page: u64,
        num_pages: u32,
        bitmap: &[u64],
    ) -> Result<(), Errno> {
        ext::clear_dirty_log(&self.vm, self.number(id), first_page, num_pages, bitmap)
    }

    fn reap_dirty_rings(&mut self, found: &mut dyn FnMut(SlotId, u64)) -> Result<(), Errno> {
        // Held over both, so that nobody resets entries that nobody has read (rule D5).
        let Rings { rings, others, .. } = &mut *self.rings.lock();
        let ours = |slot: u32| slot >> 16 == u32::from(self.address_space);
        others.retain(|&(slot, page)| {
            if ours(slot) {
                found(SlotId(slot & 0xffff), page);
            }
            !ours(slot)
        });
        let (mut count, mut overrun) = (0, false);
        for ring in rings {
            let harvested = ring.harvest(&mut |slot, page| match ours(slot) {
                true => found(SlotId(slot & 0xffff), page),
                false => drop(others.insert((slot, page))),
            });
            count += harvested;
            // The kernel keeps some entries back. If there are none of them left, it may have written past the
            // end, and pages are lost.
            overrun |= harvested == ring.len();
        }
        if overrun {
            return Err(Errno::EOVERFLOW);
        }
        if count > 0 { ext::reset_dirty_rings(&self.vm).map(drop) } else { Ok(()) }
    }
}

fn enable(vm: &VmFd, cap: u32, argument: u32) -> Result<(), Errno> {
    let cap = kvm_enable_cap { cap, args: [argument.into(), 0, 0, 0], ..Default::default() };
    vm.enable_cap(&cap).map_err(|error| Errno(error.errno()))
}
