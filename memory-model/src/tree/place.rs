//! Placing regions in containers, taking them out, moving them.

use alloc::collections::BTreeSet;
use alloc::string::ToString;
use alloc::vec;

use crate::{MemoryError, RegionId, RegionTree};

impl RegionTree {
    /// Places `child` at priority 0.
    pub fn add(&mut self, container: RegionId, offset: u64, child: RegionId) -> Result<(), MemoryError> {
        self.add_with_priority(container, offset, child, 0)
    }

    /// Places `child` in `container`, `offset` bytes from its start. Where siblings overlap the higher
    /// priority is seen, and among equals the one added last (rules R9, R10). What reaches past the end of
    /// the container is not seen (rule R11).
    pub fn add_with_priority(
        &mut self,
        container: RegionId,
        offset: u64,
        child: RegionId,
        priority: i32,
    ) -> Result<(), MemoryError> {
        self.check_placing(container, child)?;
        let attributes = self.at(child).attributes;
        self.write(child, crate::region::Attributes { offset, priority, ..attributes });
        self.place_on_top(child, container);
        Ok(())
    }

    /// Takes `child` out of its container; it can be placed again.
    pub fn remove(&mut self, child: RegionId) -> Result<(), MemoryError> {
        self.container_of(child)?;
        self.note_whole(child);
        self.unplace(child);
        Ok(())
    }

    /// Moves a placed region inside its container: it lands on top of its ties (rule R10).
    pub fn set_offset(&mut self, child: RegionId, offset: u64) -> Result<(), MemoryError> {
        let container = self.container_of(child)?;
        let attributes = self.at(child).attributes;
        if attributes.offset != offset {
            self.remove(child)?;
            self.write(child, crate::region::Attributes { offset, ..attributes });
            self.place_on_top(child, container);
        }
        Ok(())
    }

    /// Changes the priority of a placed region: it lands on top of its new ties (rule R10).
    pub fn set_priority(&mut self, child: RegionId, priority: i32) -> Result<(), MemoryError> {
        let container = self.container_of(child)?;
        let attributes = self.at(child).attributes;
        if attributes.priority != priority {
            self.remove(child)?;
            self.write(child, crate::region::Attributes { priority, ..attributes });
            self.place_on_top(child, container);
        }
        Ok(())
    }

    fn place_on_top(&mut self, child: RegionId, container: RegionId) {
        self.placings += 1;
        self.place(child, container, self.placings);
        self.note_whole(child);
    }

    /// Puts `child` where its priority and the number of its placing belong.
    pub(super) fn place(&mut self, child: RegionId, container: RegionId, placed: u64) {
        let region = self.at_mut(child);
        region.container = Some(container);
        region.placed = placed;
        let entry = region.as_child(child);
        let position = self.position(container, entry.priority, placed);
        self.at_mut(container).children.insert(position, entry);
        self.journal.placed(child);
    }

    pub(super) fn unplace(&mut self, child: RegionId) {
        let region = self.at_mut(child);
        let container = region.container.take().expect("checked by the caller");
        let (priority, placed) = (region.attributes.priority, region.placed);
        let position = self.position(container, priority, placed);
        self.at_mut(container).children.remove(position);
        self.journal.unplaced(child, container, placed);
    }

    /// Brings what the container keeps of a placed region up to date.
    pub(super) fn refresh(&mut self, child: RegionId) {
        let region = self.at(child);
        let Some(container) = region.container else { return };
        let entry = region.as_child(child);
        let position = self.position(container, entry.priority, entry.placed);
        self.at_mut(container).children[position] = entry;
    }

    fn position(&self, container: RegionId, priority: i32, placed: u64) -> usize {
        let children = &self.at(container).children;
        children.partition_point(|child| (child.priority, child.placed) > (priority, placed))
    }

    fn container_of(&self, child: RegionId) -> Result<RegionId, MemoryError> {
        let region = self.get(child)?;
        region.container.ok_or_else(|| MemoryError::NotPlaced { region: region.name.to_string() })
    }

    fn check_placing(&self, container: RegionId, child: RegionId) -> Result<(), MemoryError> {
        let (parent, region) = (self.get(container)?, self.get(child)?);
        if let Some(current) = region.container {
            let (region, container) = (region.name.to_string(), self.name_of(current));
            return Err(MemoryError::AlreadyPlaced { region, container });
        }
        if parent.kind.alias_target().is_some() {
            let (alias, region) = (parent.name.to_string(), region.name.to_string());
            return Err(MemoryError::ChildOfAlias { alias, region });
        }
        if self.shows(child, container) {
            let (region, container) = (region.name.to_string(), parent.name.to_string());
            return Err(MemoryError::Cycle { region, container });
        }
        Ok(())
    }

    /// Whether `inner` is `outer` or can be seen through it, by children and aliases. Searched upwards, where
    /// there is less to search.
    fn shows(&self, outer: RegionId, inner: RegionId) -> bool {
        let region = self.at(outer);
        if region.children.is_empty() && region.kind.alias_target().is_none() {
            return outer == inner;
        }
        let mut seen = BTreeSet::new();
        let mut todo = vec![inner];
        while let Some(id) = todo.pop() {
            if id == outer {
                return true;
            }
            if seen.insert(id) {
                let region = self.at(id);
                todo.extend(region.container);
                todo.extend(&region.aliases);
            }
        }
        false
    }
}
