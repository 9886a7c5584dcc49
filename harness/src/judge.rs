//! From a run to a verdict: the guest's own report, what the host saw, and every chain the manifest names.

use std::time::Duration;

use guest_tests::{EndingSpec, Holds, Image, Manifest, Occasion, PagesSpec, Rights};
use memory_model::{Gpa, Gva, PageSize};
use serde::{Deserialize, Serialize};
use vcpu::{Exit, HostView, Witness};

use crate::chain::{Chain, Known, LinkKind, Observer, Outcome};
use crate::machine::{Ending, Machine, Run};
use crate::{HarnessError, Mmu, Scene};

/// So many reasons are kept: a guest can ring as often as it likes.
const MAX_REASONS: usize = 1 << 12;

/// What became of a guest on one machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It ended as expected, and no check failed.
    Pass,
    /// It reported a failure, or a check failed.
    Fail,
    /// Its budget ran out.
    Timeout,
    /// It could not go on.
    Crash,
    /// It halted without saying how it went.
    NoVerdict,
    /// It could not run here.
    Skip,
}

impl Verdict {
    /// The word used in reports.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Timeout => "timeout",
            Self::Crash => "crash",
            Self::NoVerdict => "no-verdict",
            Self::Skip => "skip",
        }
    }
}

/// How many checks went which way.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Counts {
    /// Both sides agreed.
    pub ok: u64,
    /// They did not.
    pub wrong: u64,
    /// One side could not be had.
    pub unchecked: u64,
}

impl Counts {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Ok => self.ok += 1,
            Outcome::Wrong(_) => self.wrong += 1,
            Outcome::NotChecked(_) => self.unchecked += 1,
        }
    }
}

/// All that is known of a guest's run on one machine.
#[derive(Clone, Debug)]
pub struct Report {
    /// The guest.
    pub guest: String,
    /// The machine.
    pub mmu: Mmu,
    /// What became of it.
    pub verdict: Verdict,
    /// Why it is not a pass, each reason a line; first the one that decided.
    pub reasons: Vec<String>,
    /// All checks, the run's and the chains'.
    pub checks: Counts,
    /// What could not be checked, each reason once.
    pub unchecked: Vec<String>,
    /// Second-level faults taken, where the host counts them.
    pub violations: Option<u64>,
    /// From the first instruction to the last exit.
    pub elapsed: Duration,
    /// The chain of each page that the manifest names.
    pub chains: Vec<Chain>,
    /// The run, if there was one.
    pub run: Option<Run>,
    /// What was left behind, if it did not pass.
    pub scene: Option<Scene>,
}

impl Report {
    /// A guest that did not run.
    pub fn skipped(guest: &str, mmu: Mmu, why: String) -> Self {
        Self {
            guest: guest.to_owned(),
            mmu,
            verdict: Verdict::Skip,
            reasons: vec![why],
            checks: Counts::default(),
            unchecked: Vec::new(),
            violations: None,
            elapsed: Duration::ZERO,
            chains: Vec::new(),
            run: None,
            scene: None,
        }
    }
}

/// Boots `image` on a new VM of that kind, runs it and judges it.
pub fn run_guest(name: &str, image: &Image, mmu: Mmu) -> Result<Report, HarnessError> {
    let mut machine = Machine::build(image.clone(), mmu.create_vm(image)?)?;
    let run = machine.run()?;
    judge(name, mmu, &mut machine, run)
}

/// Judges a machine after its run.
pub fn judge(name: &str, mmu: Mmu, machine: &mut Machine, run: Run) -> Result<Report, HarnessError> {
    let mut judge = run.found.clone();
    judge.run(machine.image().manifest(), &run);
    // A guest that did not end by itself did not touch all it was to touch: nothing to follow.
    match ended_as(run.ending.clone(), machine.image().manifest()) {
        true => judge.look(machine, None, true)?,
        false => judge.tables(machine.host(), "all second-level tables"),
    }
    let verdict = match (&run.ending, judge.reasons.is_empty()) {
        (_, true) => Verdict::Pass,
        (Ending::Timeout(_), _) => Verdict::Timeout,
        (Ending::Crashed(_), _) => Verdict::Crash,
        (Ending::Halted, _) => Verdict::NoVerdict,
        (Ending::Reported(_), false) => Verdict::Fail,
    };
    let scene = match verdict {
        Verdict::Pass => None,
        _ => Some(Scene::of(machine, &run)?),
    };
    let mut chains = run.chains.clone();
    chains.append(&mut judge.chains);
    Ok(Report {
        guest: name.to_owned(),
        mmu,
        verdict,
        reasons: judge.reasons,
        checks: judge.counts,
        unchecked: judge.unchecked,
        violations: machine.host().violations(),
        elapsed: run.elapsed,
        chains,
        run: Some(run),
        scene,
    })
}

/// Whether the run ended as the manifest says, but for the code.
fn ended_as(ending: Ending, manifest: &Manifest) -> bool {
    match manifest.expect.ending {
        EndingSpec::Exit => matches!(ending, Ending::Reported(_)),
        EndingSpec::Halt => ending == Ending::Halted,
        EndingSpec::Shutdown => ending == Ending::Crashed(Exit::Shutdown),
        EndingSpec::MemoryFault => matches!(ending, Ending::Crashed(Exit::MemoryFault { .. })),
    }
}

/// All that was found so far.
#[derive(Clone, Default, Debug)]
pub(crate) struct Judge {
    counts: Counts,
    reasons: Vec<String>,
    unchecked: Vec<String>,
    pub(crate) chains: Vec<Chain>,
}

impl Judge {
    /// Counts an outcome; `place` says where, should it be wrong.
    fn note(&mut self, outcome: &Outcome, place: impl FnOnce() -> String) {
        self.counts.count(outcome);
        match outcome {
            Outcome::Ok => {}
            Outcome::Wrong(how) if self.reasons.len() < MAX_REASONS => {
                self.reasons.push(format!("{}: {how}", place()));
            }
            Outcome::Wrong(_) => {}
            Outcome::NotChecked(why) if self.unchecked.contains(why) => {}
            Outcome::NotChecked(why) => self.unchecked.push(why.clone()),
        }
    }

    pub(crate) fn not_checked(&mut self, what: &str, why: &str) {
        self.note(&Outcome::NotChecked(why.to_owned()), || what.to_owned());
    }

    pub(crate) fn check(&mut self, what: &str, holds: bool, how: impl FnOnce() -> String) {
        let outcome = if holds { Outcome::Ok } else { Outcome::Wrong(how()) };
        self.note(&outcome, || what.to_owned());
    }

    /// What the guest reported, and what the host saw of it.
    fn run(&mut self, manifest: &Manifest, run: &Run) {
        let expect = &manifest.expect;
        let code_differs = |ending: &Ending| matches!(ending, Ending::Reported(code) if *code != expect.exit);
        let ended = ended_as(run.ending.clone(), manifest) && !code_differs(&run.ending);
        self.check("ending", ended, || match &run.ending {
            Ending::Reported(code) if expect.ending != EndingSpec::Exit => {
                format!("the guest reported {code:#x}, expected {:?}", expect.ending)
            }
            Ending::Reported(code) => format!("the guest reported {code:#x}, expected {:#x}", expect.exit),
            Ending::Halted => "the guest halted without a report".to_owned(),
            Ending::Timeout(limit) => format!("the budget ran out ({limit:?})"),
            Ending::Crashed(exit) => format!("the guest cannot go on: {exit:x?}"),
        });
        if let Some(console) = &expect.console {
            self.check("console", *console == run.console, || {
                format!("expected {console:?}, found {:?}", run.console)
            });
        }
        if let Some(faults) = expect.memory_faults {
            self.check("memory faults", faults == run.memory_faults, || {
                format!("expected {faults}, found {}", run.memory_faults)
            });
        }
        if let Some(mmio) = &expect.mmio {
            let same = *mmio == run.mmio && run.mmio_unkept == 0;
            self.check("MMIO", same, || format!("expected {mmio:x?}, found {:x?}", run.mmio));
        }
    }

    /// All that must hold at an occasion, or at the end: every page that the manifest names for it, from its GVA to its HPA,
    /// and all second-level tables. With `keep` the chains are kept.
    pub(crate) fn look(
        &mut self,
        machine: &mut Machine,
        when: Option<Occasion>,
        keep: bool,
    ) -> Result<(), HarnessError> {
        let at = when.map_or_else(String::new, |when| format!("{when}, "));
        let (guest, ring) = (machine.guest_paging()?, machine.ring()?);
        let (view, slots) = (machine.view(), machine.slots().lock().expect("no listener panics"));
        let still = machine.host().still();
        let host = still.as_deref().unwrap_or(machine.host());
        let observer = Observer { guest, view: &view, slots: slots.registry(), host, ring };
        let (image, expect) = (machine.image(), &machine.image().manifest().expect);
        for pages in expect.pages.iter().filter(|pages| pages.when == when) {
            let first = image.resolve(&pages.at)?;
            for index in 0..pages.count {
                let offset = index.wrapping_mul(pages.stride.0);
                let gva = Gva(first.wrapping_add(offset));
                let chain = observer.follow(gva, &known(image.manifest(), pages, host, gva, offset));
                for check in &chain.checks {
                    self.note(&check.outcome, || format!("{at}page {gva}, {}, {}", check.link, check.what));
                }
                if keep {
                    self.chains.push(chain);
                }
            }
        }
        for same in expect.same_page.iter().filter(|same| same.when == when) {
            let (one, other) = (image.resolve(&same.one)?, image.resolve(&same.other)?);
            for offset in small_pages(same.count) {
                let follow = |base: u64| observer.follow(Gva(base.wrapping_add(offset)), &touched());
                self.same_page(&at, &follow(one), &follow(other));
            }
        }
        for absent in expect.absent.iter().filter(|absent| absent.when == when) {
            let first = image.resolve(&absent.at)?;
            for page in small_pages(absent.count).map(|offset| first.wrapping_add(offset)) {
                let leaf = match host.leaf(Gva(page), Gpa(page)) {
                    Witness::Absent => Outcome::Ok,
                    Witness::Seen(leaf) => Outcome::Wrong(format!("the leaf {:#x} maps it", leaf.entry)),
                    Witness::NotShown(why) => Outcome::NotChecked(why.into_owned()),
                };
                self.note(&leaf, || format!("{at}page {page:#x}, second level, no leaf"));
            }
        }
        self.tables(host, &format!("{at}all second-level tables"));
        Ok(())
    }

    /// All second-level tables, whatever the manifest says.
    fn tables(&mut self, host: &dyn HostView, place: &str) {
        let found = match host.verification() {
            Witness::Seen(found) => found,
            Witness::Absent => return,
            Witness::NotShown(why) => {
                return self.note(&Outcome::NotChecked(why.into_owned()), || place.to_owned());
            }
        };
        for why in found.not_checked() {
            self.note(&Outcome::NotChecked(why), || place.to_owned());
        }
        if found.is_clean() {
            return self.note(&Outcome::Ok, || place.to_owned());
        }
        for finding in found.findings() {
            self.note(&Outcome::Wrong(finding), || place.to_owned());
        }
    }

    /// Two addresses of one page: equal from the HVA on.
    fn same_page(&mut self, at: &str, one: &Chain, other: &Chain) {
        let place = || format!("{at}pages {} and {}", one.gva, other.gva);
        self.check(&place(), one.hva.is_some() && one.hva == other.hva, || {
            format!("HVA {} and {}", shown(one.hva), shown(other.hva))
        });
        let frames = match (one.hpa, other.hpa) {
            (Some(one), Some(other)) if one == other => Outcome::Ok,
            (Some(one), Some(other)) => Outcome::Wrong(format!("HPA {one} and {other}")),
            // Why one has no frame, its own chain says.
            _ => failing(one).or_else(|| failing(other)).unwrap_or(Outcome::Wrong("no frame".to_owned())),
        };
        self.note(&frames, place);
    }
}

/// The first comparison on the host's link that did not come out well.
fn failing(chain: &Chain) -> Option<Outcome> {
    let host = chain.checks.iter().filter(|check| check.link == LinkKind::HvaToHpa);
    host.map(|check| check.outcome.clone()).find(|outcome| *outcome != Outcome::Ok)
}

/// A page that the guest has been at, nothing more.
fn touched() -> Known {
    Known { access: Some(Rights::default()), ..Known::default() }
}

fn shown<T: std::fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

fn small_pages(count: u64) -> impl Iterator<Item = u64> {
    (0..count).map(|index| index << PageSize::Size4K.shift())
}

/// What the manifest says of one page, so many bytes behind the first.
fn known(manifest: &Manifest, pages: &PagesSpec, host: &dyn HostView, gva: Gva, offset: u64) -> Known {
    let leaf = pages.shadow_leaf.filter(|_| host.is_shadow()).or(pages.leaf);
    let gpa = pages.gpa.map(|gpa| Gpa(gpa.0.wrapping_add(offset)));
    Known {
        gpa: Some(gpa.unwrap_or_else(|| mapped_to(manifest, gva))),
        leaf_page: leaf.map(|page| page.0),
        guest_page: pages.guest_page.map(|page| page.0),
        region: pages.region.clone(),
        holds: pages.holds.map(|holds| match holds {
            Holds::Gva => gva.0,
            Holds::Value(value) => value,
        }),
        access: Some(pages.access),
    }
}

/// Where the manifest's maps lead: the last one that holds the address, or the identity.
fn mapped_to(manifest: &Manifest, gva: Gva) -> Gpa {
    let inside =
        |map: &&guest_tests::MapSpec| gva.0.checked_sub(map.gva.0).is_some_and(|offset| offset < map.size.0);
    match manifest.maps.iter().rev().find(inside) {
        Some(map) => Gpa(map.gpa.0.wrapping_add(gva.0 - map.gva.0)),
        None => Gpa(gva.0),
    }
}
