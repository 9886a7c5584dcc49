//! What a software processor remembers of its translations.

use memory_model::{AddrRange, Gva, Hpa, PageSize};

use super::kernel::Flushes;
use super::{AccessKind, Paging};

/// How many translations are remembered at a time.
const ENTRIES: usize = 512;

/// A use of a linear page. A use that was allowed once says nothing of the others: rights differ, and so do the accessed
/// and dirty flags that it has set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Use(u64);

impl Use {
    /// All uses of a page: reads, writes and fetches, each by the supervisor, by the user, and by the supervisor with AC.
    const OF_A_PAGE: [u64; 9] = [0, 1, 2, 4, 5, 6, 8, 9, 10];

    pub fn new(paging: &Paging, gva: Gva, kind: AccessKind) -> Self {
        let kind = match kind {
            AccessKind::Read => 0,
            AccessKind::Write => 1,
            AccessKind::Fetch => 2,
        };
        // To a user AC is no right.
        let by = if paging.user { 1 << 2 } else { u64::from(paging.ac) << 3 };
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
    /// No page of the guest's that is larger than an entry lies outside of these.
    large: Option<AddrRange<Gva>>,
}

impl Default for Tlb {
    fn default() -> Self {
        let none = Entry { of: Use(0), page: Page { input: 0, hpa: Hpa(0) }, made: 0 };
        Self { entries: Box::new([none; ENTRIES]), flushes: 1, requested: Flushes::default(), large: None }
    }
}

impl Tlb {
    pub fn get(&mut self, of: Use, requested: Flushes) -> Option<Page> {
        self.hear(requested);
        let entry = &self.entries[of.place()];
        (entry.of == of && entry.made == self.flushes).then_some(entry.page)
    }

    /// Remembers a translation that has just been used, its flags set. It lies in a page of the guest's of that size.
    pub fn insert(&mut self, of: Use, page: Page, size: PageSize, requested: Flushes) {
        self.hear(requested);
        if size != PageSize::Size4K {
            let page = AddrRange::page_of(of.gva(), size);
            self.large = Some(self.large.map_or(page, |large| large.hull(page)));
        }
        self.entries[of.place()] = Entry { of, page, made: self.flushes };
    }

    /// Forgets everything. So does a load of CR3, as it may: that a page is global is not known.
    pub fn flush(&mut self) {
        self.flushes += 1;
        self.large = None;
    }

    /// Forgets the guest's page that holds `gva`: everything, where that can be more than one page here.
    pub fn flush_page(&mut self, gva: Gva) {
        if self.large.is_some_and(|large| large.contains(gva)) {
            return self.flush();
        }
        let page = gva.align_down(PageSize::Size4K).raw();
        for of in Use::OF_A_PAGE.map(|of| Use(page | of)) {
            let entry = &mut self.entries[of.place()];
            if entry.of == of {
                entry.made = 0;
            }
        }
    }

    /// Another number after each flush of everything, made or asked for.
    pub fn generation(&self, requested: Flushes) -> u64 {
        self.flushes.wrapping_add(requested.count())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// All uses of a page, of that size, by the supervisor.
    fn used(tlb: &mut Tlb, gva: u64, size: PageSize) {
        for kind in 0..3 {
            let page = Page { input: gva, hpa: Hpa(gva << 8) };
            tlb.insert(Use(gva | kind), page, size, Flushes::default());
        }
    }

    fn known(tlb: &mut Tlb, gva: u64) -> usize {
        (0..3).filter(|kind| tlb.get(Use(gva | kind), Flushes::default()).is_some()).count()
    }

    #[test]
    fn a_flushed_page_goes_in_all_its_uses_and_alone() {
        let mut tlb = Tlb::default();
        used(&mut tlb, 0x40_0000, PageSize::Size2M);
        used(&mut tlb, 0x1000, PageSize::Size4K);
        used(&mut tlb, 0x2000, PageSize::Size4K);
        tlb.flush_page(Gva(0x1fff));
        assert_eq!([0x1000, 0x2000, 0x40_0000].map(|gva| known(&mut tlb, gva)), [0, 3, 3]);
    }

    #[test]
    fn a_piece_of_a_large_page_goes_with_all_others() {
        let mut tlb = Tlb::default();
        used(&mut tlb, 0x40_0000, PageSize::Size2M);
        used(&mut tlb, 0x5f_f000, PageSize::Size2M);
        let before = tlb.generation(Flushes::default());
        tlb.flush_page(Gva(0x40_0000));
        assert_eq!(known(&mut tlb, 0x5f_f000), 0);
        assert_ne!(tlb.generation(Flushes::default()), before, "pages that were given are asked for again");
    }
}
