//! Which guest addresses an edit can change: found by walking up from the region to the roots that show it.

use alloc::vec::Vec;

use crate::{AddrRange, Eventfd, Gpa, RegionId, RegionTree};

impl RegionTree {
    /// Notes every address at which `id` can be seen as things are.
    pub(super) fn note_whole(&mut self, id: RegionId) {
        if self.journal.is_open() {
            let last = self.at(id).last();
            let windows = self.windows_of(id, 0, last);
            self.journal.changes.windows.extend(windows);
        }
    }

    /// Notes where an eventfd can be seen.
    pub(super) fn note_eventfd(&mut self, id: RegionId, eventfd: Eventfd) {
        if self.journal.is_open() {
            let windows = self.windows_of(id, eventfd.offset, eventfd.last());
            self.journal.changes.events.extend(windows);
        }
    }

    /// Notes where the coalesced parts of a region can be seen.
    pub(super) fn note_coalesced(&mut self, id: RegionId) {
        if self.journal.is_open() {
            let last = self.at(id).last();
            let windows = self.windows_of(id, 0, last);
            self.journal.changes.events.extend(windows);
        }
    }

    pub(super) fn note_everything(&mut self) {
        self.journal.changes.everything = self.journal.is_open();
    }

    /// Where the roots of address spaces show the bytes `first..=last` of `id`: clipped at each container and
    /// alias on the way up, nothing behind a disabled region. Gives up once it has looked at more regions
    /// than a full render would.
    fn windows_of(&mut self, id: RegionId, first: u64, last: u64) -> Vec<(RegionId, AddrRange<Gpa>)> {
        let budget = 2 * self.entries.len() + 1000;
        let mut steps = self.journal.changes.steps;
        let mut windows = Vec::new();
        let mut todo = alloc::vec![(id, first, last)];
        while let Some((id, first, last)) = todo.pop() {
            steps += 1;
            if steps > budget || self.journal.changes.everything {
                self.journal.changes.everything = true;
                return Vec::new();
            }
            let region = self.at(id);
            let Some(part) = AddrRange::inclusive(Gpa(first), Gpa(last.min(region.last()))) else { continue };
            if !region.enabled() {
                continue;
            }
            if region.roots > 0 {
                windows.push((id, part));
            }
            let (first, last) = (part.first().0, part.last().0);
            if let (Some(container), Some(first)) = (region.container, first.checked_add(region.offset())) {
                todo.push((container, first, last.saturating_add(region.offset())));
            }
            for &alias in &region.aliases {
                let start = match self.at(alias).kind {
                    crate::RegionKind::Alias { offset, .. } => offset,
                    _ => unreachable!("only aliases show another region"),
                };
                if let Some(last) = last.checked_sub(start) {
                    todo.push((alias, first.saturating_sub(start), last));
                }
            }
        }
        self.journal.changes.steps = steps;
        windows
    }
}
