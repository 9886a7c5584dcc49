//! Changing what a region is like.

use alloc::string::ToString;

use super::MAX_SIZE;
use crate::region::Attributes;
use crate::{Coalesced, DirtyClients, Eventfd, MemoryError, Region, RegionId, RegionKind, RegionTree};

impl RegionTree {
    /// Makes a region longer or shorter. Memory cannot be longer than its block.
    pub fn set_size(&mut self, id: RegionId, size: u128) -> Result<(), MemoryError> {
        let region = self.get(id)?;
        let limit = region.kind.ram().map_or(MAX_SIZE, |block| block.size().into());
        if !(1..=limit).contains(&size) {
            return Err(MemoryError::BadSize { region: region.name.to_string(), size });
        }
        let old = region.attributes;
        if old.size != size {
            self.note_whole(id);
            self.write(id, Attributes { size, ..old });
            self.note_whole(id);
        }
        Ok(())
    }

    /// Shows or hides a region with all below it (rule R12).
    pub fn set_enabled(&mut self, id: RegionId, enabled: bool) -> Result<(), MemoryError> {
        let old = self.get(id)?.attributes;
        if old.enabled != enabled {
            // A hidden region reaches nothing: whichever of the two notes is made while it shows counts.
            self.note_whole(id);
            self.write(id, Attributes { enabled, ..old });
            self.note_whole(id);
        }
        Ok(())
    }

    /// Makes a region, and all that is seen through it, read-only (rule R13).
    pub fn set_readonly(&mut self, id: RegionId, readonly: bool) -> Result<(), MemoryError> {
        self.set(id, |attributes| Attributes { readonly, ..attributes })
    }

    /// Makes a region, and all that is seen through it, non-volatile (rule R13).
    pub fn set_nonvolatile(&mut self, id: RegionId, nonvolatile: bool) -> Result<(), MemoryError> {
        self.set(id, |attributes| Attributes { nonvolatile, ..attributes })
    }

    /// Keeps a region, and all that is seen through it, from being joined with neighbours (rules R13, R17).
    pub fn set_unmergeable(&mut self, id: RegionId, unmergeable: bool) -> Result<(), MemoryError> {
        self.set(id, |attributes| Attributes { unmergeable, ..attributes })
    }

    /// Makes the reads of a ROM device direct, or sends them to its callbacks (rule R7).
    pub fn set_romd(&mut self, id: RegionId, romd: bool) -> Result<(), MemoryError> {
        let region = self.get(id)?;
        if !matches!(region.kind, RegionKind::RomDevice { .. }) {
            return Err(MemoryError::NotRomDevice { region: region.name.to_string() });
        }
        self.set(id, |attributes| Attributes { romd, ..attributes })
    }

    /// Says who wants to know of writes to a region (QEMU's `memory_region_set_log`).
    pub fn set_dirty_log(&mut self, id: RegionId, dirty_log: DirtyClients) -> Result<(), MemoryError> {
        self.set(id, |attributes| Attributes { dirty_log, ..attributes })
    }

    /// Lets an alias begin elsewhere in its target.
    pub fn set_alias_offset(&mut self, id: RegionId, offset: u64) -> Result<(), MemoryError> {
        let region = self.get(id)?;
        let RegionKind::Alias { target, offset: old } = region.kind else {
            return Err(MemoryError::NotAlias { region: region.name.to_string() });
        };
        if old != offset {
            self.note_whole(id);
            self.at_mut(id).kind = RegionKind::Alias { target, offset };
            self.journal.alias_moved(id, old);
        }
        Ok(())
    }

    /// Adds an eventfd to a region.
    pub fn add_eventfd(&mut self, id: RegionId, eventfd: Eventfd) -> Result<(), MemoryError> {
        let region = self.get(id)?;
        if !matches!(eventfd.size, 0 | 1 | 2 | 4 | 8) {
            return Err(bad_eventfd(region, eventfd, "of no width that a guest can write"));
        }
        if eventfd.last() > region.last() {
            return Err(bad_eventfd(region, eventfd, "outside the region"));
        }
        let Err(position) = region.eventfds.binary_search(&eventfd) else {
            return Err(bad_eventfd(region, eventfd, "there already"));
        };
        let mut eventfds = region.eventfds.clone();
        eventfds.insert(position, eventfd);
        self.write_eventfds(id, eventfds);
        self.note_eventfd(id, eventfd);
        Ok(())
    }

    /// Takes an eventfd away.
    pub fn del_eventfd(&mut self, id: RegionId, eventfd: Eventfd) -> Result<(), MemoryError> {
        let region = self.get(id)?;
        let position = region.eventfds.binary_search(&eventfd);
        let position = position.map_err(|_| bad_eventfd(region, eventfd, "not there"))?;
        let mut eventfds = region.eventfds.clone();
        eventfds.remove(position);
        self.write_eventfds(id, eventfds);
        self.note_eventfd(id, eventfd);
        Ok(())
    }

    /// Lets the writes to a part of a region be collected and delivered later.
    pub fn add_coalesced(&mut self, id: RegionId, offset: u64, size: u64) -> Result<(), MemoryError> {
        let region = self.get(id)?;
        let inside = u128::from(offset) + u128::from(size) <= region.size();
        if size == 0 || !inside {
            return Err(MemoryError::OutOfRegion { region: region.name.to_string(), offset, len: size });
        }
        let mut coalesced = region.coalesced.clone();
        coalesced.push(Coalesced { offset, size });
        self.write_coalesced(id, coalesced);
        Ok(())
    }

    /// Delivers every write to a region at once again.
    pub fn clear_coalesced(&mut self, id: RegionId) -> Result<(), MemoryError> {
        if !self.get(id)?.coalesced.is_empty() {
            self.write_coalesced(id, Default::default());
        }
        Ok(())
    }

    /// Switches dirty logging on or off for everything that can be migrated (rule R41): changes the masks, and
    /// asks no listener. For that see `AddressSpace::start_global_log`.
    pub fn set_global_log(&mut self, on: bool) {
        if self.global_log != on {
            self.journal.global_log(self.global_log);
            self.global_log = on;
            self.note_everything();
        }
    }

    /// Changes attributes that neither move nor hide a region.
    fn set(
        &mut self,
        id: RegionId,
        change: impl FnOnce(Attributes) -> Attributes,
    ) -> Result<(), MemoryError> {
        let old = self.get(id)?.attributes;
        let new = change(old);
        if old != new {
            self.write(id, new);
            self.note_whole(id);
        }
        Ok(())
    }

    pub(super) fn write(&mut self, id: RegionId, new: Attributes) {
        let old = core::mem::replace(&mut self.at_mut(id).attributes, new);
        self.journal.attributes(id, old);
        self.refresh(id);
    }

    fn write_eventfds(&mut self, id: RegionId, eventfds: alloc::vec::Vec<Eventfd>) {
        let old = core::mem::replace(&mut self.at_mut(id).eventfds, eventfds);
        self.journal.eventfds(id, old);
    }

    fn write_coalesced(&mut self, id: RegionId, coalesced: alloc::vec::Vec<Coalesced>) {
        let old = core::mem::replace(&mut self.at_mut(id).coalesced, coalesced);
        self.journal.coalesced(id, old);
        self.note_coalesced(id);
    }
}

fn bad_eventfd(region: &Region, eventfd: Eventfd, problem: &'static str) -> MemoryError {
    let Eventfd { offset, size, .. } = eventfd;
    MemoryError::BadEventfd { region: region.name.to_string(), offset, size, problem }
}
