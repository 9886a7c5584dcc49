//! Each leaf of a VM against its slots and its process's pages; and the verification of the trees above them.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use memory_model::{AddrRange, Gpa, Hpa, Hva, PageSize};

use super::LiveError;
use super::host::{SecondLevel, host_ram};
use super::leaf::LiveLeaf;
use super::pagemap::Pagemap;
use super::reading::SwitcherEntry;
use super::tables::LiveTables;
use super::trace::Replay;
use super::vm::{LiveSlot, LiveVm};
use crate::access::Rights;
use crate::format::Kind;
use crate::paging::Paging;
use crate::verify::{Guest, HostMap, HostPage, Policy, Report, Shadow, Slot, Unchecked, verify};

/// Something wrong with a leaf, by KVM's own account of what it is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeafFinding {
    /// It lies in no slot.
    #[error("{0}: outside all slots")]
    NoSlot(LiveLeaf),
    /// It reaches out of its slot.
    #[error("{leaf}: its slot has only {slot} of it")]
    Straddles {
        /// The leaf.
        leaf: LiveLeaf,
        /// The slot's addresses.
        slot: AddrRange<Gpa>,
    },
    /// It may be written, the slot may not.
    #[error("{0}: writable in a read-only slot")]
    ReadonlySlot(LiveLeaf),
    /// Its frame is not the one behind the slot.
    #[error("{leaf}: {at} is at {seen}, the process has {expected} there")]
    Frame {
        /// The leaf.
        leaf: LiveLeaf,
        /// The first page that is wrong.
        at: Gpa,
        /// Where the leaf has it.
        seen: Hpa,
        /// What the process has there.
        expected: HostPage,
    },
    /// KVM counts another number of leaves.
    #[error("{seen} leaves of {size}, KVM counts {counted}")]
    Count {
        /// Their size.
        size: PageSize,
        /// How many there are.
        seen: u64,
        /// How many KVM counts.
        counted: u64,
    },
    /// There are more leaves than the faults that KVM has fixed can have made.
    #[error("{leaves} leaves, and KVM has fixed {fixed} faults, which make at most {} each", MOST_PER_FAULT)]
    Faults {
        /// How many leaves there are.
        leaves: u64,
        /// How many faults KVM has fixed (`pf_fixed`).
        fixed: u64,
    },
    /// The host's own part of a root is open to the guest.
    #[error("entry {:#x}, number {} of root {}, is the host's own and grants USER", .0.entry, .0.index, .0.table)]
    SwitcherOpen(SwitcherEntry),
}

/// What a check of all tables came to.
#[derive(Clone, Debug)]
pub struct LiveReport {
    /// What is wrong with leaves, whatever leads to them.
    pub findings: Vec<LeafFinding>,
    /// Leaves of 4K, 2M and 1G.
    pub leaves: [u64; 3],
    /// 4 KiB frames compared with the process's.
    pub frames: u64,
    /// Frames of which the process's page map says nothing.
    pub unknown: u64,
    /// Leaves of guests of the guest: not checked.
    pub nested: u64,
    /// The trees below all roots, by the rules of [`crate::verify`].
    pub trees: Report,
    /// What KVM has told of its leaves while somebody recorded it.
    pub events: Option<Replay>,
}

impl LiveReport {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.trees.is_clean() && self.events.as_ref().is_none_or(Replay::is_clean)
    }

    /// What was found, a line each: of leaves, of trees, of events.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let trees = self.trees.findings.iter().map(ToString::to_string);
        let events = self.events.iter().flat_map(|events| &events.findings).map(ToString::to_string);
        self.findings.iter().map(ToString::to_string).chain(trees).chain(events)
    }
}

/// Leaves that a fault makes in a shadow table: that of the address, and those around it whose pages are at hand (rule
/// H4).
const MOST_PER_FAULT: u64 = 8;

/// Findings of trees that are listed; all are counted.
const LISTED: usize = 64;

impl LiveVm {
    /// Reads the tables and checks all of them against slots and page map. A VM that runs may change between the two: then
    /// what is wrong only once is not wrong, so that whoever has findings of it should look again.
    pub fn check(&self) -> Result<LiveReport, LiveError> {
        self.tables()?.check(&Pagemap::of_process(self.pid)?)
    }
}

impl LiveTables {
    /// Checks all leaves and trees.
    pub fn check(&self, host: &dyn HostMap) -> Result<LiveReport, LiveError> {
        let mut trees = self.verify_trees(host)?;
        // They are here: the VM's, whichever root leads to them.
        trees.unchecked.remove(&Unchecked::NoCounts);
        let (findings, leaves) = (Vec::new(), [0; 3]);
        let mut report =
            LiveReport { findings, leaves, frames: 0, unknown: 0, nested: 0, trees, events: None };
        for leaf in self.leaves() {
            report.leaves[usize::from(leaf.size.level()) - 1] += 1;
            match leaf.nested {
                true => report.nested += 1,
                false => report.leaf(&leaf, self.slots(), host),
            }
        }
        for counted in [Some(self.counted()), self.counted_by_file()].into_iter().flatten() {
            report.counts(counted, self.hides_leaves());
        }
        report.findings.extend(self.faults(report.leaves.iter().sum()));
        let open = self.switcher().iter().filter(|entry| entry.grants_user());
        report.findings.extend(open.copied().map(LeafFinding::SwitcherOpen));
        Ok(report)
    }

    /// Shadow tables have no leaves but those that faults have made. The TDP MMU has others, where it splits large ones.
    fn faults(&self, leaves: u64) -> Option<LeafFinding> {
        let fixed = self.count("pf_fixed").filter(|_| self.second_level() == SecondLevel::Shadow)?;
        (leaves > fixed.saturating_mul(MOST_PER_FAULT)).then_some(LeafFinding::Faults { leaves, fixed })
    }

    /// The trees below all roots that this crate can verify: not those of guests of the guest.
    fn verify_trees(&self, host: &dyn HostMap) -> Result<Report, LiveError> {
        let unsync: Vec<Gpa> =
            self.pages().iter().filter(|page| page.unsync).map(|page| Gpa(page.gfn << 12)).collect();
        let kind = match self.second_level() {
            SecondLevel::Ept => Kind::Ept,
            SecondLevel::Npt => Kind::Npt,
            SecondLevel::Shadow => Kind::Ia32e,
        };
        let spaces = [false, true].map(|smm| Space::of(self, smm, &unsync));
        let [guest, smm] = spaces.each_ref().map(|space| space.guest(host, kind));
        let guests = [guest, smm];
        let guests = if spaces[1].slots.is_empty() { &guests[..1] } else { &guests[..] };
        Ok(verify(self, guests, host_ram()?, LISTED)?)
    }
}

/// An address space as the verifier takes it: that of system management mode has slots and roots of its own.
struct Space<'a> {
    roots: Vec<Paging>,
    shadows: Vec<Shadow<'a>>,
    slots: Vec<Slot<'a>>,
}

impl<'a> Space<'a> {
    fn of(tables: &LiveTables, smm: bool, unsync: &'a [Gpa]) -> Self {
        let roots = || tables.roots().iter().filter(move |root| root.page.smm == smm && !root.page.nested);
        let shadow = |(paging, guest)| Shadow { paging, guest, unsync };
        let slots = tables.slots().iter().filter(|slot| (slot.space != 0) == smm);
        Self {
            roots: roots().filter(|root| root.page.direct).map(|root| root.paging).collect(),
            shadows: roots().filter_map(|root| Some((root.paging, root.guest?))).map(shadow).collect(),
            slots: slots.map(|slot| slot.memslot.into()).collect(),
        }
    }

    fn guest(&'a self, host: &'a dyn HostMap, kind: Kind) -> Guest<'a> {
        Guest {
            process: 0,
            roots: &self.roots,
            shadows: &self.shadows,
            slots: &self.slots,
            host,
            policy: Policy::kvm(kind),
            leaves: None,
            tables: None,
            caches: None,
        }
    }
}

impl LiveReport {
    /// KVM's own counts. Where hardware sets no flags, it makes leaves non-present to see who uses them, and counts them
    /// still.
    fn counts(&mut self, counted: [u64; 3], hides_leaves: bool) {
        for ((size, seen), counted) in PageSize::ALL.into_iter().zip(self.leaves).zip(counted) {
            let finding = LeafFinding::Count { size, seen, counted };
            if (seen > counted || seen < counted && !hides_leaves) && !self.findings.contains(&finding) {
                self.findings.push(finding);
            }
        }
    }

    fn leaf(&mut self, leaf: &LiveLeaf, slots: &[LiveSlot], host: &dyn HostMap) {
        let space = u8::from(leaf.smm);
        let after = slots.partition_point(|slot| (slot.space, slot.memslot.base) <= (space, leaf.gpa));
        let below = after.checked_sub(1).and_then(|at| slots.get(at)).filter(|slot| slot.space == space);
        let found = below.and_then(|slot| Some((slot.memslot, slot.memslot.hva_of(leaf.gpa)?)));
        let Some((slot, hva)) = found else { return self.findings.push(LeafFinding::NoSlot(*leaf)) };
        let last = leaf.gpa.checked_add(leaf.size.bytes() - 1);
        if last.and_then(|last| slot.hva_of(last)).is_none() {
            let slot = AddrRange::new(slot.base, slot.bytes.into());
            return self.findings.extend(slot.map(|slot| LeafFinding::Straddles { leaf: *leaf, slot }));
        }
        if slot.readonly && leaf.rights.contains(Rights::WRITE) {
            self.findings.push(LeafFinding::ReadonlySlot(*leaf));
        }
        let mut pages = [HostPage::UNKNOWN; 512];
        let frames = leaf.size.bytes() >> 12;
        for first in (0..frames).step_by(pages.len()) {
            let pages = &mut pages[..(frames - first).min(512) as usize];
            host.pages(Hva(hva.raw() + (first << 12)), pages);
            for (page, &expected) in (first..).zip(pages.iter()) {
                let seen = Hpa(leaf.hpa.raw() + (page << 12));
                if expected == HostPage::UNKNOWN {
                    self.unknown += 1;
                    continue;
                }
                self.frames += 1;
                if expected.hpa() != Some(seen) {
                    let at = Gpa(leaf.gpa.raw() + (page << 12));
                    return self.findings.push(LeafFinding::Frame { leaf: *leaf, at, seen, expected });
                }
            }
        }
    }
}

impl fmt::Display for LiveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leaves:")?;
        PageSize::ALL.iter().zip(self.leaves).try_for_each(|(size, count)| write!(f, " {count} x {size}"))?;
        writeln!(f, "; {} frames as the process has them", self.frames)?;
        for (what, count) in
            [("frames that the host does not tell", self.unknown), ("leaves of nested guests", self.nested)]
        {
            if count > 0 {
                writeln!(f, "not checked: {what}: {count}")?;
            }
        }
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        self.events.iter().try_for_each(|events| write!(f, "{events}"))?;
        write!(f, "below the roots: {}", self.trees)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;
    use crate::mmu::Memslot;
    use crate::verify::HostPages;

    const HVA: Hva = Hva(0x7f00_0000_0000);

    fn slot(space: u8, base: u64, bytes: u64, readonly: bool) -> LiveSlot {
        LiveSlot {
            id: 0,
            space,
            memslot: Memslot { base: Gpa(base), bytes, hva: HVA, readonly, log_dirty: false },
        }
    }

    fn leaf(gpa: u64, size: PageSize, hpa: u64) -> LiveLeaf {
        LiveLeaf {
            gpa: Gpa(gpa),
            size,
            hpa: Hpa(hpa),
            rights: Rights::RWX,
            entry_address: Hpa(0x5000),
            entry: hpa | 0x7,
            smm: false,
            nested: false,
        }
    }

    fn found(leaf: LiveLeaf, slots: &[LiveSlot], pages: &[HostPage]) -> (Vec<LeafFinding>, u64, u64) {
        let trees =
            verify(&crate::SparseMemory::default(), &[], AddrRange::new(Hpa(0), 0x1000).unwrap(), 0).unwrap();
        let mut report = LiveReport {
            findings: vec![],
            leaves: [0; 3],
            frames: 0,
            unknown: 0,
            nested: 0,
            trees,
            events: None,
        };
        report.leaf(&leaf, slots, &HostPages { hva: HVA, pages });
        (report.findings, report.frames, report.unknown)
    }

    const SMALL: PageSize = PageSize::Size4K;
    const LARGE: PageSize = PageSize::Size2M;

    #[test]
    fn a_leaf_lies_in_a_slot_of_its_address_space() {
        let page = [HostPage::at(Hpa(0x9000))];
        let slots = [slot(0, 0x1000, 0x1000, false), slot(1, 0x3000, 0x1000, false)];
        assert_eq!(found(leaf(0x1000, SMALL, 0x9000), &slots, &page), (vec![], 1, 0));
        for gpa in [0, 0x2000, 0x3000, 0x4000] {
            let outside = leaf(gpa, SMALL, 0x9000);
            assert_eq!(found(outside, &slots, &page).0, [LeafFinding::NoSlot(outside)]);
        }
        let smm = |gpa| LiveLeaf { smm: true, ..leaf(gpa, SMALL, 0x9000) };
        assert_eq!(found(smm(0x3000), &slots, &page).0, []);
        assert_eq!(found(smm(0x1000), &slots, &page).0, [LeafFinding::NoSlot(smm(0x1000))]);
    }

    #[test]
    fn a_large_leaf_is_compared_frame_by_frame() {
        let mut pages: Vec<_> = (0..512).map(|page| HostPage::at(Hpa(0x40_0000 + (page << 12)))).collect();
        let (large, slots) = (leaf(0, LARGE, 0x40_0000), [slot(0, 0, 0x20_0000, false)]);
        assert_eq!(found(large, &slots, &pages), (vec![], 512, 0));
        pages[2] = HostPage::UNKNOWN;
        assert_eq!(found(large, &slots, &pages), (vec![], 511, 1));
        pages[511] = HostPage::ABSENT;
        let wrong = LeafFinding::Frame {
            leaf: large,
            at: Gpa(0x1f_f000),
            seen: Hpa(0x5f_f000),
            expected: HostPage::ABSENT,
        };
        assert_eq!(found(large, &slots, &pages).0, [wrong]);
        let short = [slot(0, 0, 0x1f_f000, false)];
        let range = AddrRange::inclusive(Gpa(0), Gpa(0x1f_efff)).unwrap();
        assert_eq!(found(large, &short, &pages).0, [LeafFinding::Straddles { leaf: large, slot: range }]);
    }

    #[test]
    fn only_a_readonly_slot_minds_a_writable_leaf() {
        let (page, slots) = ([HostPage::at(Hpa(0x9000))], [slot(0, 0, 0x1000, true)]);
        let writable = leaf(0, SMALL, 0x9000);
        let readable = LiveLeaf { rights: Rights::READ, ..writable };
        assert_eq!(found(writable, &slots, &page).0, [LeafFinding::ReadonlySlot(writable)]);
        assert_eq!(found(readable, &slots, &page).0, []);
    }
}
