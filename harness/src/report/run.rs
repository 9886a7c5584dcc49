//! One guest on one machine, as data for the page.

use std::time::{Duration, Instant};

use ept::Rights;
use ept::mmu::{FaultOutcome, HostFault};
use guest_tests::Manifest;
use memory_model::{Gpa, Gva};
use serde::Serialize;
use vcpu::{FaultEvent, FaultRecord, Witness};

use super::columns::Column;
use super::format::name_of;
use super::memory::Memory;
use crate::{Chain, Counts, Exits, HarnessError, Machine, Outcome, Report, Verdict};

/// So many letters of a console are shown.
const CONSOLE: usize = 64 << 10;
/// So many reasons, and broken links, are shown.
const LISTED: usize = 200;

#[derive(Serialize)]
pub(super) struct RunData {
    guest: String,
    summary: String,
    area: &'static str,
    mmu: &'static str,
    verdict: Verdict,
    reasons: Vec<String>,
    checks: Counts,
    unchecked: Vec<String>,
    /// The comparisons of pages that did not come out well: GVA, link, what, how.
    broken: Vec<Broken>,
    faults: Option<u64>,
    elapsed_ns: u64,
    ending: Option<String>,
    console: String,
    registers: Option<String>,
    exits: Option<ExitsData>,
    tables: Option<TablesData>,
    fault_events: Option<FaultsData>,
    memory: Option<Memory>,
}

#[derive(Serialize)]
struct Broken {
    gva: String,
    link: String,
    what: &'static str,
    how: String,
    wrong: bool,
}

#[derive(Serialize)]
struct TablesData {
    kind: &'static str,
    bytes: u64,
    leaves: [u64; 3],
}

/// Kinds and how many; the last in words; for each that has a time: nanoseconds since the one before, and its kind.
#[derive(Serialize)]
struct ExitsData {
    counts: Vec<(&'static str, u64)>,
    last: Vec<String>,
    at: Column,
    kind: Column,
}

/// For each fault: nanoseconds since the one before, nanoseconds that it took, if that is known; its page, a guest-physical one
/// where no other is known; and what came of it, or what the access was.
#[derive(Serialize, Default)]
struct FaultsData {
    /// Pages are guest-physical ones.
    physical: bool,
    kinds: Vec<String>,
    at: Column,
    took: Column,
    page: Column,
    kind: Column,
    unkept: u64,
    lost: u64,
}

impl RunData {
    /// What is known without looking at the machine.
    pub fn new(manifest: &Manifest, report: &Report) -> Self {
        let run = report.run.as_ref();
        Self {
            guest: report.guest.clone(),
            summary: manifest.summary.clone(),
            area: manifest.area.word(),
            mmu: report.mmu.name(),
            verdict: report.verdict,
            reasons: report.reasons.iter().take(LISTED).cloned().collect(),
            checks: report.checks,
            unchecked: report.unchecked.clone(),
            broken: report.chains.iter().flat_map(broken).take(LISTED).collect(),
            faults: report.violations,
            elapsed_ns: nanoseconds(report.elapsed),
            ending: run.map(|run| format!("{:x?}", run.ending)),
            console: run.map_or_else(String::new, |run| run.console.chars().take(CONSOLE).collect()),
            registers: run.map(|run| run.regs.to_string()),
            exits: run.map(|run| ExitsData::new(&run.exits)),
            tables: None,
            fault_events: None,
            memory: None,
        }
    }

    /// The same with what the machine, which was started then, has in its memory now.
    pub fn with_machine(self, machine: &mut Machine, started: Option<Instant>) -> Result<Self, HarnessError> {
        let (tables, memory) = machine.observe(|observer| {
            let tables = match observer.host.tables() {
                Witness::Seen(tables) => Some(TablesData {
                    kind: if tables.shadow { "shadow" } else { name_of(&tables.format) },
                    bytes: tables.bytes,
                    leaves: tables.leaves,
                }),
                _ => None,
            };
            (tables, Memory::of(observer))
        })?;
        let fault_events = match machine.host().faults() {
            Witness::Seen(record) => Some(FaultsData::new(&record, started)),
            _ => None,
        };
        Ok(Self { tables, fault_events, memory: Some(memory), ..self })
    }
}

fn broken(chain: &Chain) -> impl Iterator<Item = Broken> {
    chain.checks.iter().filter_map(|check| {
        let (how, wrong) = match &check.outcome {
            Outcome::Ok => return None,
            Outcome::Wrong(how) => (how, true),
            Outcome::NotChecked(why) => (why, false),
        };
        let (gva, link) = (chain.gva.to_string(), check.link.to_string());
        Some(Broken { gva, link, what: check.what, how: how.clone(), wrong })
    })
}

impl ExitsData {
    fn new(exits: &Exits) -> Self {
        let counts: Vec<_> = exits.counts.iter().map(|(kind, count)| (*kind, *count)).collect();
        let (mut at, mut kind) = (Column::default(), Column::default());
        let mut before = 0;
        for (time, name) in &exits.times {
            let now = nanoseconds(*time);
            at.push((now - before) as i64);
            before = now;
            kind.push(counts.iter().position(|(kind, _)| kind == name).unwrap_or(0) as i64);
        }
        Self { counts, last: exits.last.iter().map(Exits::line).collect(), at, kind }
    }
}

impl FaultsData {
    /// Of a machine that was started then; else its times are those since the first fault.
    fn new(record: &FaultRecord, started: Option<Instant>) -> Self {
        let physical = record.events.iter().any(|event| event.gva.is_none());
        let mut data = Self { physical, unkept: record.unkept, lost: record.lost, ..Self::default() };
        let (mut before, mut page_before) = (0, 0);
        for event in &record.events {
            let page = event.gva.map(Gva::page_number).or(event.gpa.map(Gpa::page_number));
            let after = event.at.saturating_duration_since(started.unwrap_or(record.events[0].at));
            let (now, page) = (nanoseconds(after), page.unwrap_or_default());
            data.at.push(now as i64 - before as i64);
            if let Some(took) = event.took {
                data.took.push(nanoseconds(took) as i64);
            }
            data.page.push(page as i64 - page_before as i64);
            (before, page_before) = (now, page);
            let name = outcome(event);
            let known = data.kinds.iter().position(|kind| *kind == name);
            data.kind.push(known.unwrap_or(data.kinds.len()) as i64);
            if known.is_none() {
                data.kinds.push(name);
            }
        }
        data
    }
}

/// What came of a fault, in few words.
fn outcome(event: &FaultEvent) -> String {
    let Some(outcome) = event.outcome else {
        let access = [(Rights::EXEC, "fetch"), (Rights::WRITE, "write")];
        let done = access.into_iter().find(|(right, _)| event.access.contains(*right));
        return done.map_or("read", |(_, name)| name).to_owned();
    };
    match outcome {
        FaultOutcome::Fixed { size } => format!("mapped {size}"),
        FaultOutcome::Spurious => "spurious".to_owned(),
        FaultOutcome::Retry => "retry".to_owned(),
        FaultOutcome::Mmio { .. } => "MMIO".to_owned(),
        FaultOutcome::MmioReadonlyWrite { .. } => "write to read-only memory".to_owned(),
        FaultOutcome::WriteProtected { .. } => "write to a guest table".to_owned(),
        FaultOutcome::Guest(_) => "the guest's own #PF".to_owned(),
        FaultOutcome::HostFault { fault: HostFault::CopyOnWrite, .. } => "copy on write".to_owned(),
        FaultOutcome::HostFault { .. } => "no page of the host".to_owned(),
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
