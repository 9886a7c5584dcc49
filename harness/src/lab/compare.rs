//! The model against the real thing: what a second level maps, as text that is the same wherever it maps the same.

use std::fmt::{self, Write};

use ept::{Caching, MemoryType, Rights};
use memory_model::{AddrRange, Gpa};
use serde::{Deserialize, Serialize};
use vcpu::{HostView, MappedPage, Witness};

use super::Lab;
use crate::inspect::letters;

/// All pages of a second level, a line for each run of pages that are alike: addresses, size, rights, memory type.
/// Accessed and dirty flags, and where the frames are, are left out.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct LeafMap(pub Vec<String>);

impl LeafMap {
    /// The map of a VM that does not run; `None` if its host does not show it.
    pub fn of(host: &dyn HostView) -> Option<Self> {
        match host.mapped_pages() {
            Witness::Seen(pages) => Some(Self::of_pages(&pages)),
            Witness::Absent | Witness::NotShown(_) => None,
        }
    }

    fn of_pages(pages: &[MappedPage]) -> Self {
        let follows = |one: &MappedPage, next: &MappedPage| {
            one.gpa.checked_add(one.size.bytes()) == Some(next.gpa)
                && (one.size, one.rights, one.caching) == (next.size, next.rights, next.caching)
        };
        Self(pages.chunk_by(follows).filter_map(line).collect())
    }

    fn without(&self, other: &Self) -> Vec<String> {
        self.0.iter().filter(|line| !other.0.contains(line)).cloned().collect()
    }
}

/// What is seen of a second level after a run.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Seen {
    /// Second-level faults, as the host counts them.
    pub violations: Option<u64>,
    /// The same by what the host has told of each; `None` if it tells nothing, or some of it is lost.
    pub told: Option<u64>,
    /// What it maps at the end, where that can be read.
    pub leaves: Option<LeafMap>,
}

impl Seen {
    /// What a host shows of a VM that does not run. What it tells of faults must have been recorded.
    pub fn of(host: &dyn HostView) -> Self {
        let told = match host.faults() {
            Witness::Seen(record) if record.lost == 0 => Some(record.events.len() as u64 + record.unkept),
            _ => None,
        };
        Self { violations: host.violations(), told, leaves: LeafMap::of(host) }
    }
}

/// A guest in a lab, and on the machine here that is its model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Comparison {
    /// The model's name.
    pub model: &'static str,
    /// Second-level faults of the guest in the lab, by KVM's statistics.
    pub violations: Option<u64>,
    /// The same by KVM's trace events.
    pub violations_told: Option<u64>,
    /// The same on the model.
    pub model_violations: Option<u64>,
    /// What both map alike, in lines of [`LeafMap`]; `None` if one of them could not be read.
    pub alike: Option<usize>,
    /// What the lab alone maps so.
    pub lab_alone: Vec<String>,
    /// What the model alone maps so.
    pub model_alone: Vec<String>,
}

impl Comparison {
    /// Compares the faults and the leaves of a lab with those of its model.
    pub fn of(lab: Lab, real: &Seen, model: &Seen) -> Self {
        let mut found = Self {
            model: lab.model().name(),
            violations: real.violations,
            violations_told: real.told,
            model_violations: model.violations,
            alike: None,
            lab_alone: Vec::new(),
            model_alone: Vec::new(),
        };
        if let (Some(real), Some(model)) = (&real.leaves, &model.leaves) {
            found.lab_alone = real.without(model);
            found.model_alone = model.without(real);
            found.alike = Some(real.0.len() - found.lab_alone.len());
        }
        found
    }

    /// Whether both leaf maps are known to be the same.
    pub fn is_alike(&self) -> bool {
        self.alike.is_some() && self.lab_alone.is_empty() && self.model_alone.is_empty()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        let [violations, told, of_model] =
            [self.violations, self.violations_told, self.model_violations].map(count);
        let model = self.model;
        writeln!(
            f,
            "     model {model}: {of_model} violations, the lab {violations}, its trace events {told}"
        )?;
        match self.alike {
            Some(alike) => writeln!(f, "     runs of leaves: {alike} alike")?,
            None => writeln!(f, "     leaves: not compared, they could not be read")?,
        }
        let alone = [("the model", &self.model_alone), ("the lab", &self.lab_alone)];
        alone.iter().try_for_each(|(who, lines)| {
            lines.iter().try_for_each(|line| writeln!(f, "     {who} alone: {line}"))
        })
    }
}

/// A run of pages.
fn line(run: &[MappedPage]) -> Option<String> {
    let [first, ..] = run else { return None };
    let range = AddrRange::<Gpa>::new(first.gpa, first.size.bytes() as u128 * run.len() as u128)?;
    let mut line = format!("{range} {} x {} {}", run.len(), first.size, letters(first.rights));
    if first.rights.contains(Rights::USER) {
        line.push('u');
    }
    match first.caching {
        Caching::Ept { memory_type, ignore_pat } => {
            let name = match memory_type {
                MemoryType::Uncacheable => "UC",
                MemoryType::WriteCombining => "WC",
                MemoryType::WriteThrough => "WT",
                MemoryType::WriteProtected => "WP",
                MemoryType::WriteBack => "WB",
            };
            let _ = write!(line, " {name}{}", if ignore_pat { " IPAT" } else { "" });
        }
        Caching::Pat(index) => _ = write!(line, " PAT{index}"),
    }
    Some(line)
}
