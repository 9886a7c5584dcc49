//! What leaves there must be after all that KVM has done, against those that there are.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use alloc::{format, vec};
use core::fmt;

use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};

use super::event::{Event, Happened};
use super::fault::taken;
use crate::format::{Entry, Format, Levels};
use crate::live::leaf::LiveLeaf;
use crate::live::tables::LiveTables;
use crate::live::vm::LiveSlot;

/// Leaves and events do not agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceFinding {
    /// KVM has not told of it.
    #[error("{0}: there, and never installed")]
    NeverInstalled(LiveLeaf),
    /// The last that KVM has told of this entry is something else.
    #[error("{leaf}: installed was {size} for GPA {gpa} at {hpa}")]
    OtherInstalled {
        /// The leaf.
        leaf: LiveLeaf,
        /// The guest's page that was installed.
        gpa: Gpa,
        /// Its size.
        size: PageSize,
        /// Where it was.
        hpa: Hpa,
    },
    /// It should have gone.
    #[error("{leaf}: there, {}", match unmapped {
        Some(range) => format!("though {range} of the process was unmapped since it was installed"),
        None => "though it was zapped since it was installed".to_string(),
    })]
    Stale {
        /// The leaf.
        leaf: LiveLeaf,
        /// What was unmapped; `None` if the leaf itself was zapped, or all were.
        unmapped: Option<AddrRange<Hva>>,
    },
    /// KVM counts other faults than it tells of.
    #[error("faults: events tell of {told}, KVM counts {counted}")]
    Faults {
        /// By events.
        told: u64,
        /// By KVM's own count of its vCPUs.
        counted: u64,
    },
}

/// What the comparison of leaves and events came to.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Replay {
    /// What is wrong.
    pub findings: Vec<TraceFinding>,
    /// Leaves made or changed.
    pub installs: u64,
    /// Leaves that are as the last event says.
    pub agree: u64,
    /// Leaves that were installed and are gone, as events say.
    pub gone: u64,
    /// Leaves that are gone without an event: the kernel's own threads may take pages away, and those are not watched.
    pub unexplained: u64,
    /// Events that nobody has kept. If there is one, nothing is compared.
    pub lost: u64,
    /// Faults that went to KVM's tables, by events; `None` of `kvm_pvm`, which does not tell of them.
    pub faults: Option<u64>,
    /// The same as KVM counts them (`pf_taken`), if it does.
    pub faults_counted: Option<u64>,
}

impl Replay {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    /// What could not be compared, a line each.
    pub fn not_checked(&self) -> Vec<String> {
        if self.lost > 0 {
            return vec![format!("what KVM has told of its leaves: {} events are lost", self.lost)];
        }
        let unexplained = (self.unexplained > 0)
            .then(|| format!("leaves that are gone without an event: {}", self.unexplained));
        let faults = match (self.faults, self.faults_counted) {
            (None, _) => Some("faults: kvm_pvm has no event for them".to_string()),
            (_, None) => Some("faults: this kernel does not count them".to_string()),
            (Some(_), Some(_)) => None,
        };
        unexplained.into_iter().chain(faults).collect()
    }
}

impl fmt::Display for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { installs, agree, gone, .. } = self;
        if self.lost == 0 {
            write!(f, "events: ")?;
            self.faults.iter().try_for_each(|faults| write!(f, "{faults} faults, "))?;
            writeln!(f, "{installs} installs; {agree} leaves as they say, {gone} gone as they say")?;
        }
        self.not_checked().iter().try_for_each(|line| writeln!(f, "not checked: {line}"))?;
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

impl LiveTables {
    /// Compares all leaves with what KVM has done since before it had any: the events of a [`Trace`](super::Trace), and how
    /// many of them it has lost.
    pub fn replay(&self, events: &[Event], lost: u64) -> Replay {
        let mut account = Account::new(self.kernel.format(Levels::Four, false));
        account.play(events);
        let replay = account.compare(self.leaves().filter(|leaf| !leaf.nested), self.slots(), lost);
        let told = taken(events, self.kernel.host.module, self.second_level());
        replay.with_faults(told, self.count("pf_taken"))
    }
}

impl Replay {
    fn with_faults(mut self, told: Option<u64>, counted: Option<u64>) -> Self {
        (self.faults, self.faults_counted) = (told, counted);
        if let (Some(told), Some(counted), 0) = (told, counted, self.lost)
            && told != counted
        {
            self.findings.push(TraceFinding::Faults { told, counted });
        }
        self
    }
}

/// The last that was said of an entry.
#[derive(Clone, Copy, Debug)]
struct Installed {
    gpa: Gpa,
    size: PageSize,
    hpa: Hpa,
    /// The number of the event.
    since: usize,
    zapped: bool,
}

/// What follows from the events alone.
struct Account {
    format: Format,
    installs: u64,
    /// By the physical address of the entry.
    entries: BTreeMap<u64, Installed>,
    /// All entries that a page ever had: there may be more than one, by several roots.
    of_page: BTreeSet<(Gpa, u64)>,
    /// The last event by which a table of that level has gone: one of all such tables.
    tables_zapped: [usize; 16],
    /// The last event by which all tables have gone.
    all_zapped: usize,
    unmapped: Vec<(usize, AddrRange<Hva>)>,
    /// Large pages that became tables, whose leaves nobody tells of.
    split: Vec<(AddrRange<Gpa>, Hpa)>,
}

impl Account {
    fn new(format: Format) -> Self {
        let (entries, of_page, tables_zapped, all_zapped, unmapped, split) = Default::default();
        Self { format, installs: 0, entries, of_page, tables_zapped, all_zapped, unmapped, split }
    }

    /// Events have numbers from 1 on.
    fn play(&mut self, events: &[Event]) {
        for (number, event) in (1..).zip(events) {
            match event.what {
                Happened::Installed { gfn, level, spte, at } => {
                    self.installs += 1;
                    // What hardware does not take for a leaf is none.
                    match self.leaf(level, spte) {
                        Some((hpa, size)) => {
                            let gpa = Gpa(gfn << 12).align_down(size);
                            let installed = Installed { gpa, size, hpa, since: number, zapped: false };
                            self.of_page.insert((gpa, at.raw()));
                            self.entries.insert(at.raw(), installed)
                        }
                        None => self.entries.remove(&at.raw()),
                    };
                }
                Happened::Changed { gfn, level, old, new, .. } => {
                    self.change(Gpa(gfn << 12), level, old, new)
                }
                Happened::TableZapped { level } => self.tables_zapped[usize::from(level & 0xf)] = number,
                Happened::AllZapped => self.all_zapped = number,
                Happened::Unmapped(range) => self.unmapped.push((number, range)),
                Happened::Faulted(_) | Happened::MmioChecked { .. } => {}
            }
        }
    }

    fn leaf(&self, level: u8, spte: u64) -> Option<(Hpa, PageSize)> {
        match self.format.decode(level, spte) {
            Entry::Leaf(frame, size) => Some((Hpa(frame), size)),
            _ => None,
        }
    }

    /// An entry of the TDP MMU that was present. That one became a leaf is told by itself, with its place.
    fn change(&mut self, gpa: Gpa, level: u8, old: u64, new: u64) {
        let Some((hpa, size)) = self.leaf(level, old) else { return };
        if self.leaf(level, new) == Some((hpa, size)) {
            return;
        }
        for (_, at) in self.of_page.range((gpa, 0)..=(gpa, u64::MAX)) {
            let entry = self.entries.get_mut(at);
            // What is there now may be another page's.
            if let Some(entry) = entry.filter(|entry| (entry.gpa, entry.size, entry.hpa) == (gpa, size, hpa))
            {
                entry.zapped = true;
            }
        }
        if let Entry::Table(_) = self.format.decode(level, new) {
            self.split.push((AddrRange::page_of(gpa, size), hpa));
        }
    }

    fn compare(self, leaves: impl Iterator<Item = LiveLeaf>, slots: &[LiveSlot], lost: u64) -> Replay {
        let installs = self.installs;
        let mut replay = Replay { installs, lost, ..Replay::default() };
        if lost > 0 {
            return replay;
        }
        let mut entries = self.entries.clone();
        for leaf in leaves {
            let Some(installed) = entries.remove(&leaf.entry_address.raw()) else {
                if !self.is_part(&leaf) {
                    replay.findings.push(TraceFinding::NeverInstalled(leaf));
                }
                continue;
            };
            let Installed { gpa, size, hpa, .. } = installed;
            if (gpa, size, hpa) != (leaf.gpa, leaf.size, leaf.hpa) {
                replay.findings.push(TraceFinding::OtherInstalled { leaf, gpa, size, hpa });
                continue;
            }
            match self.unmapped_since(&installed, slots) {
                None if !self.is_zapped(&installed) => replay.agree += 1,
                unmapped => replay.findings.push(TraceFinding::Stale { leaf, unmapped }),
            }
        }
        for installed in entries.values() {
            let table_zapped = self.tables_zapped[usize::from(installed.size.level())] > installed.since;
            match table_zapped || self.is_zapped(installed) || self.unmapped_since(installed, slots).is_some()
            {
                true => replay.gone += 1,
                false => replay.unexplained += 1,
            }
        }
        replay
    }

    fn is_zapped(&self, installed: &Installed) -> bool {
        installed.zapped || self.all_zapped > installed.since
    }

    /// What was unmapped of what is behind it, after it was installed.
    fn unmapped_since(&self, installed: &Installed, slots: &[LiveSlot]) -> Option<AddrRange<Hva>> {
        let hva = slots.iter().find_map(|slot| slot.memslot.hva_of(installed.gpa))?;
        let page = AddrRange::new(hva, installed.size.bytes().into())?;
        let since = self.unmapped.partition_point(|(number, _)| *number < installed.since);
        let found = self.unmapped[since..].iter().find(|(_, range)| range.overlaps(page));
        found.map(|&(_, range)| range)
    }

    /// Whether it is a part of a large page that was split.
    fn is_part(&self, leaf: &LiveLeaf) -> bool {
        self.split.iter().any(|(page, hpa)| {
            page.offset_of(leaf.gpa).is_some_and(|offset| leaf.hpa.checked_sub(*hpa) == Some(offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Rights;
    use crate::format::{Ept, EptCaps, MaxPhyAddr};
    use crate::mmu::Memslot;

    const HVA: u64 = 0x7f00_0000_0000;
    const LEAF: u64 = 0x77;
    const LARGE: u64 = 0xf7;
    const TABLE: u64 = 0x7;

    fn compared(events: &[Happened], leaves: &[LiveLeaf]) -> Replay {
        let format = Format::ept(Ept::new(Levels::Four, EptCaps::all(), MaxPhyAddr::MAX));
        let mut account = Account::new(format);
        let event = |(time, &what)| Event { time, thread: 1, what };
        account.play(&(0..).zip(events).map(event).collect::<Vec<_>>());
        let base = Gpa(0x20_0000);
        let memslot = Memslot { base, bytes: 0x40_0000, hva: Hva(HVA), readonly: false, log_dirty: false };
        account.compare(leaves.iter().copied(), &[LiveSlot { id: 0, space: 0, memslot, private: false }], 0)
    }

    fn install(gfn: u64, level: u8, spte: u64, at: u64) -> Happened {
        Happened::Installed { gfn, level, spte, at: Hpa(at) }
    }

    fn change(gfn: u64, level: u8, old: u64, new: u64) -> Happened {
        Happened::Changed { gfn, level, space: 0, old, new }
    }

    fn leaf(gpa: u64, size: PageSize, hpa: u64, at: u64) -> LiveLeaf {
        LiveLeaf {
            gpa: Gpa(gpa),
            size,
            hpa: Hpa(hpa),
            rights: Rights::RWX,
            entry_address: Hpa(at),
            entry: hpa | LEAF,
            smm: false,
            nested: false,
            of_guest_page: false,
        }
    }

    const SMALL: PageSize = PageSize::Size4K;

    #[test]
    fn a_leaf_is_the_last_that_was_installed_at_its_entry() {
        let there = leaf(0x20_1000, SMALL, 0x9000, 0x5008);
        let first = install(0x201, 1, 0x8000 | LEAF, 0x5008);
        let last = install(0x201, 1, 0x9000 | LEAF, 0x5008);
        let good = compared(&[first, last], &[there]);
        assert_eq!((good.findings, good.installs, good.agree, good.gone), (vec![], 2, 1, 0));
        assert_eq!(compared(&[], &[there]).findings, [TraceFinding::NeverInstalled(there)]);
        let other =
            TraceFinding::OtherInstalled { leaf: there, gpa: there.gpa, size: SMALL, hpa: Hpa(0x8000) };
        assert_eq!(compared(&[last, first], &[there]).findings, [other]);
        let elsewhere = install(0x202, 1, 0x9000 | LEAF, 0x5008);
        assert_eq!(compared(&[elsewhere], &[there]).findings.len(), 1, "for another page of the guest");
    }

    #[test]
    fn what_is_unmapped_is_gone_until_it_is_installed_again() {
        let there = leaf(0x20_1000, SMALL, 0x9000, 0x5008);
        let made = install(0x201, 1, 0x9000 | LEAF, 0x5008);
        let range = |page: u64| AddrRange::new(Hva(HVA + page * 0x1000), 0x1000).unwrap();
        let unmap = Happened::Unmapped(range(1));
        let stale = TraceFinding::Stale { leaf: there, unmapped: Some(range(1)) };
        assert_eq!(compared(&[made, unmap], &[there]).findings, [stale]);
        assert_eq!(compared(&[made, unmap], &[]).gone, 1);
        assert!(compared(&[made, unmap, made], &[there]).is_clean());
        assert!(compared(&[made, Happened::Unmapped(range(2))], &[there]).is_clean(), "another page");
        assert_eq!(compared(&[made], &[]).unexplained, 1);
    }

    #[test]
    fn tables_go_with_their_leaves() {
        let there = leaf(0x20_1000, SMALL, 0x9000, 0x5008);
        let made = install(0x201, 1, 0x9000 | LEAF, 0x5008);
        let table = |level| Happened::TableZapped { level };
        assert!(compared(&[made, table(1)], &[there]).is_clean(), "it may be another table");
        assert_eq!(compared(&[made, table(1)], &[]).gone, 1);
        assert_eq!(compared(&[made, table(2)], &[]).unexplained, 1);
        let stale = TraceFinding::Stale { leaf: there, unmapped: None };
        assert_eq!(compared(&[made, Happened::AllZapped], &[there]).findings, [stale]);
        assert_eq!(compared(&[made, Happened::AllZapped], &[]).gone, 1);
    }

    #[test]
    fn the_tdp_mmu_tells_of_each_entry_that_changes() {
        let there = leaf(0x20_1000, SMALL, 0x9000, 0x5008);
        let made = install(0x201, 1, 0x9000 | LEAF, 0x5008);
        let protected = change(0x201, 1, 0x9000 | LEAF, 0x9000 | LEAF & !2);
        assert!(compared(&[made, protected], &[there]).is_clean());
        let zapped = change(0x201, 1, 0x9000 | LEAF, 1 << 63);
        assert_eq!(compared(&[made, zapped], &[]).gone, 1);
        let stale = TraceFinding::Stale { leaf: there, unmapped: None };
        assert_eq!(compared(&[made, zapped], &[there]).findings, [stale]);
    }

    #[test]
    fn parts_of_a_large_page_that_is_split_are_its_own() {
        let large = install(0x200, 2, 0x80_0000 | LARGE, 0x6008);
        let split = change(0x200, 2, 0x80_0000 | LARGE, 0x7000 | TABLE);
        let part = leaf(0x20_3000, SMALL, 0x80_3000, 0x7018);
        let replay = compared(&[large, split], &[part]);
        assert_eq!((replay.findings, replay.gone), (vec![], 1));
        let strange = leaf(0x20_3000, SMALL, 0x80_4000, 0x7018);
        assert_eq!(compared(&[large, split], &[strange]).findings, [TraceFinding::NeverInstalled(strange)]);
        assert_eq!(compared(&[large], &[part]).findings.len(), 1);
    }

    #[test]
    fn lost_events_leave_all_unchecked() {
        let account = Account::new(Format::ept(Ept::new(Levels::Four, EptCaps::all(), MaxPhyAddr::MAX)));
        let replay = account.compare([leaf(0, SMALL, 0, 0)].into_iter(), &[], 3);
        assert!(replay.is_clean());
        assert!(replay.to_string().contains("not checked"), "{replay}");
        assert!(replay.with_faults(Some(5), Some(7)).is_clean(), "some of the lost may be faults");
    }

    #[test]
    fn faults_are_told_as_often_as_they_are_counted() {
        let of = |told, counted| Replay::default().with_faults(told, counted);
        let good = of(Some(7), Some(7));
        assert!(good.is_clean() && good.not_checked().is_empty());
        for told in [6, 8] {
            let found = of(Some(told), Some(7)).findings;
            assert_eq!(found, [TraceFinding::Faults { told, counted: 7 }]);
        }
        for unknown in [of(Some(7), None), of(None, Some(7))] {
            assert!(unknown.is_clean() && unknown.to_string().contains("not checked: faults"));
        }
    }
}
