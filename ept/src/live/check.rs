//! Each leaf of a VM against its slots and its process's pages; and the verification of the trees above them.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use std::panic::resume_unwind;
use std::thread;

use memory_model::{AddrRange, Gpa, PageSize};

use super::LiveError;
use super::host::{SecondLevel, host_ram};
use super::leaves::{LeafFinding, Leaves, MOST_PER_FAULT, pages_of};
use super::pagemap::Pagemap;
use super::stretches::Stretches;
use super::tables::LiveTables;
use super::trace::Replay;
use super::vm::LiveVm;
use crate::format::Kind;
use crate::paging::Paging;
use crate::verify::{Guest, HostMap, Policy, Report, Shadow, Slot, Unchecked, verify};

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
        let private = self.slots().iter().filter(|slot| slot.private).map(|slot| slot.memslot);
        let private =
            private.filter_map(|memslot| AddrRange::new(memslot.hva, memslot.bytes.into())).collect();
        let pages = self.leaves().flat_map(|leaf| pages_of(leaf, self.slots()));
        let host = &Stretches::around(host, pages).without(private);
        let (leaves, trees) = if host.are_many() {
            thread::scope(|scope| {
                let leaves = scope.spawn(|| Leaves::of(self, host));
                let trees = self.verify_trees(host);
                (leaves.join().unwrap_or_else(|panic| resume_unwind(panic)), trees)
            })
        } else {
            (Leaves::of(self, host), self.verify_trees(host))
        };
        let mut trees = trees?;
        // They are here: the VM's, whichever root leads to them.
        trees.unchecked.remove(&Unchecked::NoCounts);
        let Leaves { findings, leaves, frames, unknown, nested } = leaves;
        let mut report = LiveReport { findings, leaves, frames, unknown, nested, trees, events: None };
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
