//! The manager's dirty log: one interface over bitmaps and rings.

use memory_model::{AddrRange, DirtyClients, FlatRange, Gpa};

use super::SlotManager;
use crate::dirty::Part;
use crate::{DirtyLog, DirtyMethod, DirtyPages, Slot, SlotError, SlotExecutor, SlotFlags, plan};

/// All clients whose bits come from a kernel's log. It does not know which of them asked.
const LOGGED: DirtyClients = DirtyClients::VGA.union(DirtyClients::MIGRATION);

impl<E: SlotExecutor> SlotManager<E> {
    /// Chooses how the kernel logs: see [`DirtyLog::set_dirty_method`](crate::DirtyLog::set_dirty_method).
    pub fn set_dirty_method(&mut self, method: DirtyMethod) -> Result<(), SlotError> {
        with_log(&mut self.executor, |log| log.set_dirty_method(method))
    }

    /// Collects the dirty pages in `range` of the slots that are logged, and all of those that were logged and
    /// are gone. A page that is written again is dirty again: their bytes must be read after this call (rules
    /// D4, D7), and then nothing is missed, be the guest running or not.
    ///
    /// After an error no page is lost: those read so far are in the next collection.
    pub fn collect_dirty(&mut self, range: AddrRange<Gpa>) -> Result<DirtyPages, SlotError> {
        self.read_log(range)?;
        let mut collected = self.hand_out(range)?;
        collected.extend(self.unread.take_rescued());
        Ok(collected)
    }

    /// Collects all dirty pages.
    pub fn collect_all_dirty(&mut self) -> Result<DirtyPages, SlotError> {
        self.collect_dirty(plan::everything())
    }

    /// Makes room in the dirty rings; what they held waits for the next collection. Does nothing where logs are
    /// bitmaps.
    pub fn reap(&mut self) -> Result<(), SlotError> {
        let Self { executor, registry, unread, .. } = self;
        if !matches!(executor.dirty_method(), DirtyMethod::Ring { .. }) {
            return Ok(());
        }
        let mut note = |id, page| {
            if let Some(slot) = registry.by_id(id) {
                unread.note(slot, page);
            }
        };
        let reaped = with_log(executor, |log| log.reap_dirty_rings(&mut note));
        reaped.map_err(|errno| SlotError::DirtyRings { errno })
    }

    /// Reads what the kernel has logged in `range`, and what it logs together with that.
    pub(super) fn read_log(&mut self, range: AddrRange<Gpa>) -> Result<(), SlotError> {
        if matches!(self.executor.dirty_method(), DirtyMethod::Ring { .. }) {
            return self.reap();
        }
        let Self { executor, registry, unread, .. } = self;
        for slot in registry.overlapping(range).filter(|slot| slot.flags.contains(SlotFlags::LOG_DIRTY_PAGES))
        {
            let mut bitmap = Vec::new();
            with_log(executor, |log| log.get_dirty_log(slot.id, &mut bitmap))
                .map_err(|errno| SlotError::DirtyLog { slot: slot.clone(), errno })?;
            unread.merge(slot.id, bitmap);
        }
        Ok(())
    }

    /// Takes the bits of `range` out of those that were read, and has the kernel log the next writes.
    fn hand_out(&mut self, range: AddrRange<Gpa>) -> Result<DirtyPages, SlotError> {
        let Self { executor, registry, unread, .. } = self;
        let by_hand = matches!(executor.dirty_method(), DirtyMethod::ManualProtect { .. });
        let mut taken: Vec<(&Slot, Part)> = Vec::new();
        for slot in registry.overlapping(range) {
            let Some(part) = unread.take(slot, range) else { continue };
            taken.push((slot, part));
            let Some((_, part)) = taken.last().filter(|_| by_hand) else { continue };
            let (first_page, num_pages) = (part.first_page, part.num_pages);
            let clear =
                |log: &mut dyn DirtyLog| log.clear_dirty_log(slot.id, first_page, num_pages, &part.words);
            if let Err(errno) = with_log(executor, clear) {
                taken.into_iter().for_each(|(slot, part)| unread.put_back(slot, part));
                return Err(SlotError::DirtyLog { slot: slot.clone(), errno });
            }
        }
        Ok(taken.into_iter().map(|(slot, part)| part.into_pages(slot)).collect())
    }

    /// Brings the bits of a range's block up to date. What cannot be read counts as dirty.
    pub(super) fn sync_range(&mut self, range: &FlatRange) {
        let found = self.read_log(range.range).and_then(|()| match self.executor.dirty_method() {
            // The kernel's bits are cleared by `log_clear`, when their pages are about to be read.
            DirtyMethod::ManualProtect { .. } => Ok(self.peek(range.range)),
            _ => self.hand_out(range.range),
        });
        self.unread.take_rescued().mark_blocks(LOGGED);
        match (found, range.ram()) {
            (Ok(pages), _) => pages.mark_blocks(range.dirty_mask),
            (Err(_), Some(block)) => {
                let bytes = u64::try_from(range.range.bytes()).unwrap_or(u64::MAX);
                block.mark_dirty(range.offset, bytes, range.dirty_mask);
            }
            (Err(_), None) => {}
        }
    }

    /// The same for all slots: rings tell of all.
    pub(super) fn sync_all(&mut self) {
        match self.collect_all_dirty() {
            Ok(pages) => pages.mark_blocks(LOGGED),
            Err(_) => self.registry.iter().for_each(|slot| {
                let offset = slot.block.offset_of(slot.hva).expect("a slot lies in its block");
                slot.block.mark_dirty(offset, slot.gpa.bytes() as u64, LOGGED);
            }),
        }
    }

    /// Has the kernel log the next writes to what was read of `range`.
    pub(super) fn clear_range(&mut self, range: AddrRange<Gpa>) {
        // If the kernel refuses, its bits stay set: the pages are found dirty once more.
        let _ = self.hand_out(range);
    }

    fn peek(&self, range: AddrRange<Gpa>) -> DirtyPages {
        let slots = self.registry.overlapping(range);
        let parts = slots.filter_map(|slot| Some((slot, self.unread.part(slot, range)?)));
        parts.map(|(slot, part)| part.into_pages(slot)).collect()
    }
}

/// What `act` gives when it is given the executor's logs.
fn with_log<T>(executor: &mut impl SlotExecutor, act: impl FnOnce(&mut dyn DirtyLog) -> T) -> T {
    let (mut act, mut answer) = (Some(act), None);
    executor.with_log(&mut |log| answer = act.take().map(|act| act(log)));
    answer.expect("an executor shows its logs once")
}
