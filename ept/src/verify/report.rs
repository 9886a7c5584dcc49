//! What came of a verification: findings, their full counts, and what was and was not checked.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt;

use memory_model::PageSize;

use super::finding::{Finding, Input, Invariant};
use crate::walk::Path;

/// The result of a verification.
#[derive(Clone, Debug)]
pub struct Report {
    /// The findings by guest, root and address: as many as were asked for, those with the lowest addresses. See
    /// [`Report::count`] for how many there are.
    pub findings: Vec<Finding>,
    /// What was looked at.
    pub coverage: Coverage,
    /// What was not checked, and how often it came up: never counted as right.
    pub unchecked: BTreeMap<Unchecked, u64>,
    pub(super) counts: [u64; 16],
}

/// What a verification has looked at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Coverage {
    /// Tables read, by level; 0 is unused.
    pub tables: [u64; 6],
    /// For each guest, its leaves of 4K, 2M and 1G.
    pub leaves: Vec<[u64; 3]>,
    /// 4 KiB frames compared with the host's.
    pub frames: u64,
    /// Entries that mean something to software only, by the policy's encodings: nothing else of them is checked.
    pub software: u64,
    /// Pages and tables that processors remember, compared with the tables in memory.
    pub remembered: u64,
}

/// Why something was not checked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Unchecked {
    /// 2: frames of which the host does not say where they are.
    HostUnknown,
    /// 2: frames of leaves that lie in no slot, or not wholly in one.
    NoHva,
    /// 3: writable leaves in a logged slot, whose log is not known.
    LogUnknown,
    /// 3: leaves whose sub-page permissions let a guest write parts of them.
    SubPages,
    /// 8, 9: frames mapped outside of the host's RAM.
    OutsideRam,
    /// 9: frames whose HVA another slot has too, and of which the host does not say where they are.
    AliasUnknown,
    /// All: tables whose pointers changed while they were read.
    Changed,
    /// All: tables that no part of the work has looked at.
    Unfinished,
    /// 12: guests whose leaf counts are not known.
    NoCounts,
    /// 13: guests of whose processors nobody has said what they remember.
    Caches,
    /// 13: pages and tables remembered for address spaces of which nobody has said what translates them.
    CachedElsewhere,
    /// 9: frames of shadow leaves of a guest that has second-level tables, too: these are checked.
    ShadowAliases,
    /// 14: shadow leaves below a table of the guest that is not kept in step.
    Unsync,
    /// 14: shadow leaves below a table of the guest that the host does not tell.
    GuestTableUnknown,
    /// 14: shadow tables that are reached once more, with yet another part of the guest's tables behind them.
    ShadowedOften,
    /// 15: guests whose tables are not listed.
    NoOwner,
}

impl fmt::Display for Unchecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostUnknown => "invariant 2: frames that the host does not tell",
            Self::NoHva => "invariant 2: frames of leaves outside their slots",
            Self::LogUnknown => "invariant 3: writable leaves whose dirty log is not known",
            Self::SubPages => "invariant 3: leaves with sub-page permissions",
            Self::OutsideRam => "invariants 8 and 9: frames outside of the host's RAM",
            Self::AliasUnknown => {
                "invariant 9: frames of slots that share HVAs, and that the host does not tell"
            }
            Self::Changed => "all invariants: tables that changed while they were read",
            Self::Unfinished => "all invariants: tables not looked at",
            Self::NoCounts => "invariant 12: guests whose leaf counts are not known",
            Self::Caches => "invariant 13: guests whose processors' caches are not given",
            Self::CachedElsewhere => "invariant 13: what is cached of other address spaces",
            Self::ShadowAliases => "invariant 9: frames of shadow leaves beside second-level tables",
            Self::Unsync => "invariant 14: shadow leaves of tables not kept in step",
            Self::GuestTableUnknown => {
                "invariant 14: shadow leaves of guest tables that the host does not tell"
            }
            Self::ShadowedOften => "invariant 14: shadow tables of too many guest tables",
            Self::NoOwner => "invariant 15: guests whose tables are not listed",
        })
    }
}

impl Report {
    /// How often that invariant is broken, whether or not the findings are listed.
    pub fn count(&self, invariant: Invariant) -> u64 {
        self.counts[usize::from(invariant.number())]
    }

    /// How many findings there are, listed or not.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether nothing was found. What was not checked is in [`Report::unchecked`].
    pub fn is_clean(&self) -> bool {
        self.total() == 0
    }

    /// How often something was left unchecked for that reason.
    pub fn unchecked(&self, reason: Unchecked) -> u64 {
        self.unchecked.get(&reason).copied().unwrap_or(0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Coverage { tables, leaves, frames, software, .. } = &self.coverage;
        writeln!(
            f,
            "{} tables, {frames} frames, {software} entries of software",
            tables.iter().sum::<u64>()
        )?;
        for (guest, leaves) in leaves.iter().enumerate() {
            write!(f, "guest {guest}:")?;
            PageSize::ALL.iter().zip(leaves).try_for_each(|(size, count)| write!(f, " {count} x {size}"))?;
            writeln!(f)?;
        }
        for (reason, count) in &self.unchecked {
            writeln!(f, "not checked, {reason}: {count}")?;
        }
        for invariant in Invariant::ALL {
            if self.count(invariant) > 0 {
                let (number, title) = (invariant.number(), invariant.title());
                writeln!(f, "invariant {number}, {title}: {}", self.count(invariant))?;
            }
        }
        self.findings.iter().try_for_each(|finding| writeln!(f, "{finding}"))?;
        match self.total() - self.findings.len() as u64 {
            0 => Ok(()),
            more => writeln!(f, "and {more} more"),
        }
    }
}

/// The lowest values by their keys, up to a number of them: whatever order they come in, the same are kept.
#[derive(Clone, Debug)]
pub(super) struct Lowest<K, V> {
    most: usize,
    kept: BTreeMap<K, V>,
}

impl<K: Ord, V> Lowest<K, V> {
    pub fn new(most: usize) -> Self {
        Self { most, kept: BTreeMap::new() }
    }

    /// Whether a value of that key would be kept.
    pub fn wants(&self, key: &K) -> bool {
        self.kept.len() < self.most || self.kept.last_key_value().is_some_and(|(last, _)| key < last)
    }

    pub fn insert(&mut self, key: K, value: V) {
        self.kept.insert(key, value);
        if self.kept.len() > self.most {
            self.kept.pop_last();
        }
    }

    pub fn merge(&mut self, other: Self) {
        other.kept.into_iter().for_each(|(key, value)| self.insert(key, value));
    }

    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.kept.iter()
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.kept.values_mut()
    }

    pub fn into_values(self) -> impl Iterator<Item = V> {
        self.kept.into_values()
    }
}

/// The order of findings.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Key {
    guest: usize,
    root: usize,
    address: Input,
    /// Entries nearer to the root first.
    level: Reverse<u8>,
    invariant: Invariant,
    /// Tells apart what concerns a whole guest.
    more: u64,
}

/// Findings and counts, as they come up.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    pub findings: Lowest<Key, Finding>,
    pub counts: [u64; 16],
    pub unchecked: BTreeMap<Unchecked, u64>,
    pub coverage: Coverage,
}

/// The "level" of what concerns a whole guest.
pub(super) const NO_LEVEL: u8 = u8::MAX;

impl Tally {
    pub fn new(most: usize, guests: usize) -> Self {
        Self {
            findings: Lowest::new(most),
            counts: [0; 16],
            unchecked: BTreeMap::new(),
            coverage: Coverage { leaves: alloc::vec![[0; 3]; guests], ..Coverage::default() },
        }
    }

    /// Counts a finding at an entry of that level, and keeps it if its place is low enough; only then is the path asked for.
    pub fn found(&mut self, level: u8, more: u64, head: Finding, path: impl FnOnce() -> Path) {
        let Finding { guest, root, address, violation, .. } = head;
        let invariant = violation.invariant();
        self.counts[usize::from(invariant.number())] += 1;
        let key = Key { guest, root, address, level: Reverse(level), invariant, more };
        if self.findings.wants(&key) {
            self.findings.insert(key, Finding { path: path(), ..head });
        }
    }

    /// Counts what is broken without listing it.
    pub fn count(&mut self, invariant: Invariant, count: u64) {
        self.counts[usize::from(invariant.number())] += count;
    }

    pub fn unchecked(&mut self, reason: Unchecked, count: u64) {
        if count > 0 {
            *self.unchecked.entry(reason).or_default() += count;
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.findings.merge(other.findings);
        self.counts.iter_mut().zip(other.counts).for_each(|(ours, theirs)| *ours += theirs);
        other.unchecked.into_iter().for_each(|(reason, count)| self.unchecked(reason, count));
        let (ours, theirs) = (&mut self.coverage, other.coverage);
        ours.tables.iter_mut().zip(theirs.tables).for_each(|(ours, theirs)| *ours += theirs);
        ours.leaves.iter_mut().zip(theirs.leaves).for_each(|(ours, theirs)| {
            ours.iter_mut().zip(theirs).for_each(|(ours, theirs)| *ours += theirs)
        });
        ours.frames += theirs.frames;
        ours.software += theirs.software;
        ours.remembered += theirs.remembered;
    }

    pub fn report(self) -> Report {
        Report {
            findings: self.findings.into_values().collect(),
            coverage: self.coverage,
            unchecked: self.unchecked,
            counts: self.counts,
        }
    }
}
