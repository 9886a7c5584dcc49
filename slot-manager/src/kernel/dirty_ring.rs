//! The dirty log as rings: one for each vCPU, filled by it and emptied by its VMM (rule D5).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use memory_model::Gpa;

use super::table::split_number;
use super::{Ioctls, KernelMemslots, KvmArch};
use crate::Errno;

/// Bytes of an entry (`struct kvm_dirty_gfn`).
const ENTRY: u64 = 16;
/// Entries kept back, so that what a vCPU does until its next exit has room (`KVM_DIRTY_RING_RSVD_ENTRIES`).
pub const RESERVED_ENTRIES: u32 = 64;
/// The longest ring in bytes.
const MAX_BYTES: u64 = 65536 * ENTRY;

/// A page that was written to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DirtyGfn {
    /// The slot's number, with its address space in the high half.
    pub slot: u32,
    /// The page inside the slot.
    pub offset: u64,
}

/// The ring of a vCPU, as the kernel and the VMM share it.
#[derive(Debug)]
pub struct DirtyRing {
    entries: Box<[Entry]>,
    /// Where the vCPU writes next; counts on past the end of the ring.
    dirty: AtomicU32,
    /// Where the next reset begins.
    reset: AtomicU32,
}

#[derive(Debug, Default)]
struct Entry {
    state: AtomicU32,
    slot: AtomicU32,
    offset: AtomicU64,
}

/// The states of an entry (`KVM_DIRTY_GFN_F_*`).
const INVALID: u32 = 0;
const DIRTY: u32 = 1;
const HARVESTED: u32 = 2;

impl DirtyRing {
    fn new(bytes: u64) -> Self {
        let entries = (0..bytes / ENTRY).map(|_| Entry::default()).collect();
        Self { entries, dirty: AtomicU32::new(0), reset: AtomicU32::new(0) }
    }

    /// How many entries it has: a power of two.
    pub fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Whether no entry is in use.
    pub fn is_empty(&self) -> bool {
        self.used() == 0
    }

    /// Entries that a reset has not given back yet.
    pub fn used(&self) -> u32 {
        self.dirty.load(Ordering::Acquire).wrapping_sub(self.reset.load(Ordering::Acquire))
    }

    /// Whether the vCPU must leave the guest and may not enter it before a reset (`KVM_EXIT_DIRTY_RING_FULL`).
    pub fn is_soft_full(&self) -> bool {
        self.used() >= self.len() - RESERVED_ENTRIES
    }

    /// The entry at `index`, which counts on past the end of the ring, if the vCPU wrote it and it was not
    /// harvested yet.
    pub fn dirty_entry(&self, index: u32) -> Option<DirtyGfn> {
        let entry = self.entry(index);
        let dirty = entry.state.load(Ordering::Acquire) == DIRTY;
        dirty.then(|| entry.gfn())
    }

    /// Gives the entry at `index` back: the next reset makes room of it. Nothing happens unless it is dirty.
    pub fn harvested(&self, index: u32) {
        let state = &self.entry(index).state;
        // A failure means that the entry was not dirty, or is harvested already.
        let _ = state.compare_exchange(DIRTY, HARVESTED, Ordering::Release, Ordering::Relaxed);
    }

    fn entry(&self, index: u32) -> &Entry {
        &self.entries[(index & (self.len() - 1)) as usize]
    }

    /// `kvm_dirty_ring_push`; false if the ring is full. The kernel overwrites an entry then.
    fn push(&self, gfn: DirtyGfn) -> bool {
        if self.used() >= self.len() {
            return false;
        }
        let index = self.dirty.load(Ordering::Relaxed);
        let entry = self.entry(index);
        entry.slot.store(gfn.slot, Ordering::Relaxed);
        entry.offset.store(gfn.offset, Ordering::Relaxed);
        entry.state.store(DIRTY, Ordering::Release);
        self.dirty.store(index.wrapping_add(1), Ordering::Release);
        true
    }

    /// Takes one harvested entry out, in order.
    fn take_harvested(&self) -> Option<DirtyGfn> {
        let index = self.reset.load(Ordering::Relaxed);
        let entry = self.entry(index);
        let gfn = (entry.state.load(Ordering::Acquire) == HARVESTED).then(|| entry.gfn())?;
        entry.state.store(INVALID, Ordering::Relaxed);
        self.reset.store(index.wrapping_add(1), Ordering::Release);
        Some(gfn)
    }
}

impl Entry {
    fn gfn(&self) -> DirtyGfn {
        DirtyGfn { slot: self.slot.load(Ordering::Relaxed), offset: self.offset.load(Ordering::Relaxed) }
    }
}

/// What a VM has of rings.
#[derive(Debug, Default)]
pub(super) struct Rings {
    /// Bytes of each ring; 0 before they are enabled.
    pub(super) bytes: u64,
    /// Bitmaps are kept besides, for writes that no vCPU makes.
    pub(super) with_bitmap: bool,
    vcpus: u32,
    pub(super) rings: Vec<Arc<DirtyRing>>,
}

/// A condition under which rings of that many bytes cannot be enabled.
type Row = (&'static str, Errno, fn(&Rings, u64) -> bool);

/// `KVM_CAP_DIRTY_LOG_RING`, in order.
static ENABLE: [Row; 5] = [
    ("zero or no power of two", Errno::EINVAL, |_, bytes| !bytes.is_power_of_two()),
    ("below a page, or no more than the entries kept back", Errno::EINVAL, |_, bytes| bytes < 4096),
    ("longer than the longest ring", Errno::E2BIG, |_, bytes| bytes > MAX_BYTES),
    ("rings are enabled already", Errno::EINVAL, |rings, _| rings.bytes != 0),
    ("a vCPU was made before", Errno::EINVAL, |rings, _| rings.vcpus != 0),
];

impl KernelMemslots {
    /// `KVM_CAP_DIRTY_LOG_RING`: the vCPUs to come get a ring of `bytes` bytes each, and the log is kept there.
    pub fn enable_dirty_ring(&mut self, bytes: u64) -> Result<(), Errno> {
        // The kernel passes the number on in 32 bits.
        let bytes = bytes & u64::from(u32::MAX);
        match ENABLE.iter().find(|(_, _, applies)| applies(&self.rings, bytes)) {
            Some((_, errno, _)) => Err(*errno),
            None => {
                self.rings.bytes = bytes;
                Ok(())
            }
        }
    }

    /// `KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP`: bitmaps besides the rings. EINVAL on a kernel that has it not, as on
    /// x86; without rings; and as long as there are slots.
    pub fn enable_dirty_ring_with_bitmap(&mut self) -> Result<(), Errno> {
        let no_slots = self.spaces.iter().all(|space| space.active().slots().is_empty());
        if !self.caps.ring_with_bitmap || self.rings.bytes == 0 || !no_slots {
            return Err(Errno::EINVAL);
        }
        self.rings.with_bitmap = true;
        Ok(())
    }

    /// `KVM_CREATE_VCPU`, as far as slots are concerned; returns its index.
    pub fn create_vcpu(&mut self) -> u32 {
        if self.rings.bytes != 0 {
            self.rings.rings.push(Arc::new(DirtyRing::new(self.rings.bytes)));
        }
        self.rings.vcpus += 1;
        self.rings.vcpus - 1
    }

    /// The ring of a vCPU, which its VMM maps.
    pub fn dirty_ring(&self, vcpu: u32) -> Option<&Arc<DirtyRing>> {
        self.rings.rings.get(vcpu as usize)
    }

    /// `mark_page_dirty_in_slot`: notes that the page of `gpa` was written to, by a vCPU or by the VMM's side. A slot
    /// that does not log has nothing to note.
    ///
    /// False if the page is not noted because the vCPU's ring is full: the vCPU stayed in the guest though
    /// [`DirtyRing::is_soft_full`] said that it must leave.
    #[must_use]
    pub fn mark_page_dirty(&self, vcpu: Option<u32>, as_id: u32, gpa: Gpa) -> bool {
        let Some(space) = self.spaces.get(as_id as usize) else { return true };
        let Some(slot) = space.active().gfn_to_memslot(gpa) else { return true };
        let offset = gpa.page_number() - slot.base_gfn();
        if !slot.flags.contains(crate::SlotFlags::LOG_DIRTY_PAGES) {
            return true;
        }
        match (vcpu.and_then(|vcpu| self.dirty_ring(vcpu)), space.bitmaps.get(&slot.id)) {
            (Some(ring), _) => return ring.push(DirtyGfn { slot: slot.number(), offset }),
            (None, Some(bitmap)) => bitmap.set(offset),
            (None, None) => {}
        }
        true
    }

    /// Whether slots that log get bitmaps.
    pub(super) fn uses_bitmaps(&self) -> bool {
        self.rings.bytes == 0 || self.rings.with_bitmap
    }
}

impl<A: KvmArch> Ioctls<'_, A> {
    /// `KVM_RESET_DIRTY_RINGS`: makes room of all harvested entries, whose pages' next writes fault again, and
    /// returns how many there were. EINVAL without rings.
    pub fn reset_dirty_rings(&mut self) -> Result<u32, Errno> {
        if self.kernel.rings.bytes == 0 {
            return Err(Errno::EINVAL);
        }
        let mut count = 0;
        for ring in &self.kernel.rings.rings {
            while let Some(gfn) = ring.take_harvested() {
                count += 1;
                let (as_id, id) = split_number(gfn.slot);
                let set = self.kernel.address_space(as_id);
                // The slot may be gone, or another one may have its number.
                let slot = set.and_then(|set| set.slots().by_id(id));
                if let Some(slot) = slot.filter(|slot| gfn.offset < slot.npages()) {
                    self.arch.enable_log_dirty(slot, gfn.offset / 64 * 64, 1 << (gfn.offset % 64));
                }
            }
        }
        Ok(count)
    }
}
