//! Every page that a guest's tables map, each followed as far as it leads: to its range, its frame, its second-level leaf.

use ept::{Mapping, mappings};
use memory_model::{FlatRange, Gpa, Gva, Hpa, Hva, PageSize};
use vcpu::{GuestTables, SecondLevelLeaf, SecondLevelTables, Witness};

use crate::Observer;

/// 4 KiB of what a guest sees.
pub(crate) struct Place {
    pub gva: Gva,
    pub gpa: Gpa,
    /// The range of the flat view, by its number.
    pub range: Option<usize>,
    pub hva: Option<Hva>,
    /// By the host.
    pub frame: Option<Hpa>,
    /// The page of the guest's tables that it belongs to; `None` with paging off.
    pub guest: Option<Mapping>,
    pub leaf: Option<SecondLevelLeaf>,
}

/// Goes through the pages of a guest, from the lowest address up.
pub(crate) struct Pages<'a> {
    observer: &'a Observer<'a>,
    pub ranges: Vec<&'a FlatRange>,
    /// The second level, as long as the host shows it.
    pub tables: Option<SecondLevelTables>,
    shows_frames: bool,
    /// What the host does not show, and why.
    pub not_shown: Vec<String>,
}

impl<'a> Pages<'a> {
    pub fn new(observer: &'a Observer<'a>) -> Self {
        let ranges = observer.view.ranges().collect();
        let mut pages = Self { observer, ranges, tables: None, shows_frames: true, not_shown: Vec::new() };
        pages.tables = pages.seen("second level", observer.host.tables());
        pages
    }

    /// Calls `act` for each 4 KiB.
    pub fn visit(&mut self, mut act: impl FnMut(&Self, Place)) {
        match &self.observer.guest {
            Some(paging) => {
                let tables = GuestTables(self.observer.view);
                for mapping in mappings(&tables, paging) {
                    let (gva, gpa) = (Gva(mapping.address), Gpa(mapping.frame));
                    self.run(gva, gpa, mapping.size.bytes().into(), Some(mapping), &mut act);
                }
            }
            None => {
                for range in self.ranges.clone().into_iter().filter(|range| range.ram().is_some()) {
                    let first = range.range.first();
                    self.run(Gva(first.0), first, range.range.bytes(), None, &mut act);
                }
            }
        }
    }

    fn run(
        &mut self,
        gva: Gva,
        gpa: Gpa,
        bytes: u128,
        guest: Option<Mapping>,
        act: &mut impl FnMut(&Self, Place),
    ) {
        let mut range: Option<usize> = None;
        for offset in
            (0..(bytes >> PageSize::Size4K.shift()) as u64).map(|page| page << PageSize::Size4K.shift())
        {
            let (Some(gva), Some(gpa)) = (gva.checked_add(offset), gpa.checked_add(offset)) else { return };
            range = range.filter(|&at| self.ranges[at].range.contains(gpa)).or_else(|| self.range_at(gpa));
            let hva = range.and_then(|at| self.ranges[at].hva(gpa));
            let (frame, leaf) = (hva.and_then(|hva| self.frame(hva)), self.leaf(gva, gpa));
            act(self, Place { gva, gpa, range, hva, frame, guest, leaf });
        }
    }

    fn range_at(&self, gpa: Gpa) -> Option<usize> {
        let after = self.ranges.partition_point(|range| range.range.first() <= gpa);
        after.checked_sub(1).filter(|&at| self.ranges[at].range.contains(gpa))
    }

    /// What is not shown once is not asked for again.
    fn leaf(&mut self, gva: Gva, gpa: Gpa) -> Option<SecondLevelLeaf> {
        self.tables.as_ref()?;
        let witness = self.observer.host.leaf(gva, gpa);
        if let Witness::NotShown(_) = witness {
            self.tables = None;
        }
        self.seen("second level", witness)
    }

    fn frame(&mut self, hva: Hva) -> Option<Hpa> {
        if !self.shows_frames {
            return None;
        }
        let witness = self.observer.host.frame(hva);
        self.shows_frames = !matches!(witness, Witness::NotShown(_));
        self.seen("HVA -> HPA", witness)
    }

    fn seen<T>(&mut self, what: &str, witness: Witness<T>) -> Option<T> {
        match witness {
            Witness::Seen(seen) => Some(seen),
            Witness::Absent => None,
            Witness::NotShown(why) => {
                self.not_shown.push(format!("{what}: {why}"));
                None
            }
        }
    }
}
