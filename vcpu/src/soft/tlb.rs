//! What a software processor remembers of its translations.

use memory_model::{Gva, Hpa, PageSize};

use super::kernel::Flushes;
use super::{AccessKind, Paging};

/// How many translations are remembered at a time.
const ENTRIES: usize = 512;

/// A use of a linear page. A use that was allowed once says nothing of the others: rights differ, and so do the accessed
/// and dirty flags that it has set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Use(u64);

impl Use {
    pub fn new(paging: &Paging, gva: Gva, kind: AccessKind) -> Self {
        let kind = match kind {
            AccessKind::Read => 0,
            AccessKind::Write => 1,
            AccessKind::Fetch => 2,
        };
        let by = u64::from(paging.user) << 2 | u64::from(paging.ac) << 3;
        Self(gva.align_down(PageSize::Size4K).raw() | by | kind)
    }

    /// The page.
    pub const fn gva(self) -> Gva {
        Gva(self.0 & !0xfff)
    }

    pub const fn kind(self) -> AccessKind {
        match self.0 & 3 {
            0 => AccessKind::Read,
            1 => AccessKind::Write,
            _ => AccessKind::Fetch,
        }
    }

    /// By user mode.
    pub const fn user(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// With RFLAGS.AC.
    pub const fn ac(self) -> bool {
        self.0 & 1 << 3 != 0
    }

    /// Consecutive pages are next to each other, different uses of a page far from each other.
    const fn place(self) -> usize {
        (self.0 >> 12 ^ self.0 << 5) as usize % ENTRIES
    }
}

/// Where a linear page lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Page {
    /// The address that the MMU's tables translate: guest-physical, or linear in a shadow.
    pub input: u64,
    /// The frame.
    pub hpa: Hpa,
}

#[derive(Clone, Copy)]
struct Entry {
    of: Use,
    page: Page,
    /// The [`Tlb::flushes`] when it was made.
    made: u64,
}

/// The translation cache of one processor.
///
/// It belongs to the control registers that it was filled with: whoever changes them flushes it. `requested` counts the
/// flushes that the MMU has asked for (`KVM_REQ_TLB_FLUSH`); all of them are made before the next look-up. So nothing is
/// used after the tables have ceased to allow it, but for changes that a guest makes to its own tables without INVLPG.
pub(super) struct Tlb {
    entries: Box<[Entry; ENTRIES]>,
    flushes: u64,
    requested: Flushes,
}

impl Default for Tlb {
    fn default() -> Self {
        let none = Entry { of: Use(0), page: Page { input: 0, hpa: Hpa(0) }, made: 0 };
        Self { entries: Box::new([none; ENTRIES]), flushes: 1, requested: Flushes::default() }
    }
}

impl Tlb {
    pub fn get(&mut self, of: Use, requested: Flushes) -> Option<Page> {
        self.hear(requested);
        let entry = &self.entries[of.place()];
        (entry.of == of && entry.made == self.flushes).then_some(entry.page)
    }

    /// Remembers a translation that has just been used, its flags set.
    pub fn insert(&mut self, of: Use, page: Page, requested: Flushes) {
        self.hear(requested);
        self.entries[of.place()] = Entry { of, page, made: self.flushes };
    }

    /// Forgets everything. So do INVLPG and a load of CR3, as they may: one page of the guest's can be many here, and
    /// that a page is global is not known.
    pub fn flush(&mut self) {
        self.flushes += 1;
    }

    /// Makes the flush that was asked for, if there is a new one.
    fn hear(&mut self, requested: Flushes) {
        if self.requested != requested {
            self.requested = requested;
            self.flush();
        }
    }

    /// All that would be found.
    pub fn iter(&self, requested: Flushes) -> impl Iterator<Item = (Use, Page)> {
        let valid = move |entry: &&Entry| entry.made == self.flushes && self.requested == requested;
        self.entries.iter().filter(valid).map(|entry| (entry.of, entry.page))
    }
}
