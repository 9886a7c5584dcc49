//! Guest tables that have shadows: whether the guest may write them, and what its writes do (rules H1 and H2).

use alloc::vec::Vec;

use memory_model::{Gpa, PageSize};

use super::Shadow;
use super::entries::BITS;
use super::page::{PageId, SpteRef};
use crate::error::Error;
use crate::mmu::HostFrames;

/// Writes to a table above level 1 that make its shadow not worth keeping.
const FLOODED: u8 = 3;

impl Shadow {
    /// A guest table has got a shadow of that level: from now on the guest's writes to it fault (`account_shadowed`).
    pub(super) fn track(&mut self, gfn: u64, level: u8, host: &impl HostFrames) -> Result<(), Error> {
        if level > 1 {
            // A table of that level is always tracked: no shadow of it may be older than the table.
            while let Some(id) = self.pages.find_shadowing(gfn, true) {
                self.zap_page(id, host)?;
            }
        }
        for size in [PageSize::Size2M, PageSize::Size1G] {
            // The 4K pages around the table come back by themselves (rule L2).
            for at in self.rmap.leaves(size.level(), gfn) {
                self.drop_spte(at, host)?;
            }
        }
        self.protect(gfn, host)
    }

    /// Takes W from all small leaves of a guest page, for good (`rmap_write_protect`, rule S1).
    pub(super) fn protect(&mut self, gfn: u64, host: &impl HostFrames) -> Result<(), Error> {
        for at in self.rmap.leaves(1, gfn) {
            self.take_write(at, BITS.mmu_writable, host)?;
        }
        Ok(())
    }

    /// Whether any of these guest pages holds a table that has a shadow (`disallow_lpage`, rule L2).
    pub(super) fn shadows_any(&self, gpa: Gpa, size: PageSize) -> bool {
        let first = gpa.align_down(size).page_number();
        self.pages.shadowing(first..=first + (size.bytes() >> 12) - 1).next().is_some()
    }

    /// Whether the guest may write a page now. If it is a table that has shadows of level 1 alone, a write makes them
    /// unsync (`mmu_try_to_unsync_pages`).
    pub(super) fn try_to_unsync(&mut self, gfn: u64, writes: bool) -> bool {
        match self.pages.shadows_of(gfn).map(|id| self.pages[id].role.level).max() {
            None => return true,
            Some(1) => {}
            Some(_) => return false,
        }
        while let Some(id) = self.pages.find_shadowing(gfn, false) {
            if !writes {
                return false;
            }
            self.pages[id].unsync = true;
            self.stats.mmu_unsync += 1;
            self.mark_parents_unsync(id);
        }
        true
    }

    /// Tells of `bytes` bytes written at `gpa` by an emulated instruction, after [`WriteProtected`] or on any other way
    /// that leads past the leaves; they lie in one page (`kvm_mmu_track_write`, rule H2).
    ///
    /// Whoever else writes the guest's memory (a device, the VMM, a debugger) tells of it here as well, if the guest may
    /// have tables there: write protection stops the guest alone.
    ///
    /// [`WriteProtected`]: crate::mmu::FaultOutcome::WriteProtected
    pub fn track_write(&mut self, gpa: Gpa, bytes: u64, host: &impl HostFrames) -> Result<(), Error> {
        self.stats.mmu_pte_write += 1;
        let gfn = gpa.page_number();
        let shadows: Vec<_> = self.pages.shadows_of(gfn).collect();
        let offset = gpa.page_offset(PageSize::Size4K);
        for id in shadows {
            if self.is_misaligned(id, offset, bytes) || self.is_flooded(id) {
                self.zap_page(id, host)?;
                self.stats.mmu_flooded += 1;
                continue;
            }
            for index in self.entries_of(id, offset) {
                self.zap_entry(SpteRef { page: id, index }, host)?;
            }
        }
        Ok(())
    }

    /// Whether the write is none to one entry: such a page is no table any more (`detect_write_misaligned`). A single
    /// byte may be one of an entry, as guests clear flags so.
    fn is_misaligned(&self, id: PageId, offset: u64, bytes: u64) -> bool {
        let width = self.entry_width(id);
        if bytes == 1 && offset.is_multiple_of(width) {
            return false;
        }
        bytes < 4 || offset / width != (offset + bytes - 1) / width
    }

    /// Counts the write (`detect_write_flooding`). A table of level 1 goes unsync instead.
    fn is_flooded(&mut self, id: PageId) -> bool {
        let page = &mut self.pages[id];
        if page.role.level > 1 {
            page.write_flooding_count += 1;
        }
        page.write_flooding_count >= FLOODED
    }

    fn entry_width(&self, id: PageId) -> u64 {
        let mode = self.modes.get(self.pages[id].role.mode);
        mode.map_or(8, |mode| mode.format.entry_bytes().into())
    }

    /// The entries that shadow the guest's entry at `offset` (`get_written_sptes`): one, or two for a PDE of 32-bit
    /// paging, or none if another quadrant shadows it.
    fn entries_of(&self, id: PageId, offset: u64) -> core::ops::Range<u16> {
        let width = self.entry_width(id);
        let role = self.pages[id].role;
        let each = if width == 4 && role.level == 2 { 2 } else { 1 };
        let first = (offset / width) as u16 * each;
        let of_quadrant = u16::from(role.quadrant) * 512;
        match first.checked_sub(of_quadrant) {
            Some(first) if first < 512 => first..first + each,
            _ => 0..0,
        }
    }
}
