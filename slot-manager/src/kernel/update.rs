//! Setting a slot: from the call to the swaps of the active and the inactive set (rules K3 and K4).

use kvm_bindings::{kvm_userspace_memory_region, kvm_userspace_memory_region2};

use super::dirty_bitmap::DirtyBitmap;
use super::table::{Call, Verdict};
use super::{Ioctls, KvmArch, Memslot, SlotChange};
use crate::{Errno, SlotError, SlotFlags, SlotOp};

impl<A: KvmArch> Ioctls<'_, A> {
    /// Makes the call that `op` stands for: the second version if the slot has a private half.
    pub fn execute(&mut self, op: &SlotOp) -> Result<SlotChange, SlotError> {
        let answer = match op.slot().flags.contains(SlotFlags::GUEST_MEMFD) {
            true => self.set_user_memory_region2(&op.to_region2()),
            false => self.set_user_memory_region(&op.to_region()),
        };
        answer.map_err(|errno| SlotError::refused(op, errno))
    }

    /// `KVM_SET_USER_MEMORY_REGION`. A failed call changes nothing but the generation (rule K5).
    pub fn set_user_memory_region(
        &mut self,
        region: &kvm_userspace_memory_region,
    ) -> Result<SlotChange, Errno> {
        let decided = Decided::of(&Call::first(region, self.kernel));
        self.carry_out(decided)
    }

    /// `KVM_SET_USER_MEMORY_REGION2`. Without GUEST_MEMFD the descriptor and its offset count for nothing.
    pub fn set_user_memory_region2(
        &mut self,
        region: &kvm_userspace_memory_region2,
    ) -> Result<SlotChange, Errno> {
        let decided = Decided::of(&Call::second(region, self.kernel));
        self.carry_out(decided)
    }

    fn carry_out(&mut self, decided: Decided) -> Result<SlotChange, Errno> {
        let Decided { as_id, old, new, verdict } = decided;
        let unprepared = match verdict {
            Some(Verdict::Fail(errno)) => return Err(errno),
            Some(Verdict::Nothing) => return Ok(SlotChange::Nothing),
            Some(Verdict::Unprepared(errno)) => Err(errno),
            Some(Verdict::Delete) | None => Ok(()),
        };
        self.set_memslot(as_id, (old, new), unprepared)
    }

    /// `kvm_set_memslot`. Creation and new flags swap once. Before the guest loses a page, by deletion or move, a
    /// swap shows the slot as INVALID, so that nothing new is mapped while the MMU drops what it has. `possible` is
    /// what the table says of the change's preparation.
    fn set_memslot(
        &mut self,
        as_id: u32,
        (old, new): (Option<Memslot>, Option<Memslot>),
        possible: Result<(), Errno>,
    ) -> Result<SlotChange, Errno> {
        let change = SlotChange::between(old, new);
        let leaves = matches!(change, SlotChange::Deleted(_) | SlotChange::Moved { .. });
        let invalid = old.filter(|_| leaves).map(|old| Memslot { invalid: true, ..old });
        if let (Some(old), Some(invalid)) = (old, invalid) {
            self.kernel.space_mut(as_id).replace(Some(old), Some(invalid));
            self.kernel.swap_active_memslots(as_id, self.arch);
            self.arch.flush_shadow_memslot(self.kernel, &old);
        }
        let bitmap = match self.prepare(as_id, &change, possible) {
            Ok(bitmap) => bitmap,
            Err(errno) => {
                // The inactive set still shows the slot as it was.
                if invalid.is_some() {
                    self.kernel.activate_memslot(as_id, (invalid, old), self.arch);
                }
                return Err(errno);
            }
        };
        if let (Some(bitmap), Some(new)) = (bitmap, new) {
            self.kernel.space_mut(as_id).bitmaps.insert(new.id, bitmap);
        }
        if let (Some(new), Some(part)) = (new, new.and_then(|new| new.guest_memfd)) {
            self.kernel.files.bind(part, new.bytes());
        }
        self.kernel.space_mut(as_id).replace(old, new);
        self.kernel.activate_memslot(as_id, (invalid.or(old), new), self.arch);
        self.commit(as_id, &change);
        Ok(change)
    }

    /// `kvm_prepare_memory_region`: all that can still fail. A slot that starts to log gets a bitmap.
    fn prepare(
        &mut self,
        as_id: u32,
        change: &SlotChange,
        possible: Result<(), Errno>,
    ) -> Result<Option<DirtyBitmap>, Errno> {
        let bitmaps = &self.kernel.space(as_id).bitmaps;
        let logged = change.after().filter(|new| new.flags.contains(SlotFlags::LOG_DIRTY_PAGES));
        let fresh = logged.filter(|new| self.kernel.uses_bitmaps() && !bitmaps.contains_key(&new.id));
        let all_set = self.kernel.manual_protect.initially_set();
        let bitmap = fresh.map(|new| DirtyBitmap::new(new.npages(), all_set)).transpose()?;
        possible?;
        self.arch.prepare_memory_region(change)?;
        Ok(bitmap)
    }

    /// `kvm_commit_memory_region`: lets go of what only the old slot had.
    fn commit(&mut self, as_id: u32, change: &SlotChange) {
        let logs = change.after().is_some_and(|new| new.flags.contains(SlotFlags::LOG_DIRTY_PAGES));
        if let Some(old) = change.before().filter(|_| !logs) {
            self.kernel.space_mut(as_id).bitmaps.remove(&old.id);
        }
        if let (SlotChange::Deleted(_), Some(part)) =
            (change, change.before().and_then(|old| old.guest_memfd))
        {
            self.kernel.files.unbind(part);
        }
        self.arch.commit_memory_region(self.kernel, change);
    }
}

/// What the table says of a call.
struct Decided {
    as_id: u32,
    old: Option<Memslot>,
    new: Option<Memslot>,
    verdict: Option<Verdict>,
}

impl Decided {
    fn of(call: &Call) -> Self {
        let verdict = call.decide().map(|row| row.verdict);
        Self { as_id: call.as_id, old: call.old, new: call.memslot(), verdict }
    }
}
