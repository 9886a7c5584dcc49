//! Where the guest's tables lie: what a processor remembers of the second level for its own walks.

use memory_model::{Gpa, Hpa, PageSize, RamPage};

use super::kernel::Flushes;

/// How many tables are remembered at a time, a power of two.
const ENTRIES: usize = 256;

/// A table of the guest's, found behind the second level.
pub(super) struct Table {
    pub hpa: Hpa,
    pub page: RamPage,
}

/// The guest-physical mappings (SDM vol. 3C, 28.4.1) that walks of the guest's tables need. No INVLPG and no load of a
/// control register concerns them: they are gone when the MMU asks for a flush.
pub(super) struct TableTlb {
    entries: Box<[Option<(Gpa, Table)>; ENTRIES]>,
    requested: Flushes,
}

impl Default for TableTlb {
    fn default() -> Self {
        Self { entries: Box::new([const { None }; ENTRIES]), requested: Flushes::default() }
    }
}

impl TableTlb {
    /// Makes the flush that was asked for, if there is a new one.
    pub fn hear(&mut self, requested: Flushes) {
        if self.requested != requested {
            self.requested = requested;
            self.entries.fill_with(|| None);
        }
    }

    /// The guest's entry at `gpa`. `find` finds its table, if that is not known.
    #[inline]
    pub fn entry(&mut self, gpa: Gpa, find: impl FnOnce() -> Option<Table>) -> Option<u64> {
        let table = gpa.align_down(PageSize::Size4K);
        let kept = &mut self.entries[(table.raw() >> 12) as usize % ENTRIES];
        if kept.as_ref().is_none_or(|(known, _)| *known != table) {
            *kept = Some((table, find()?));
        }
        let (_, Table { page, .. }) = kept.as_ref()?;
        Some(page.load((gpa.raw() & 0xff8) as usize))
    }

    /// All tables that would be found.
    pub fn iter(&self, requested: Flushes) -> impl Iterator<Item = (Gpa, Hpa)> {
        let valid = self.requested == requested;
        self.entries.iter().flatten().filter(move |_| valid).map(|(gpa, table)| (*gpa, table.hpa))
    }
}
