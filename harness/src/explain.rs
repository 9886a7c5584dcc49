//! A report for people to read: the verdict first, then the broken link, then all that may help to find out why.

use std::fmt::{self, Write};

use memory_model::PageSize;

use crate::inspect::letters;
use crate::{Chain, Exits, LinkKind, Outcome, Report, Verdict};

/// So many reasons are shown; all are counted.
const REASONS: usize = 8;

impl Report {
    /// Why a guest did not pass, and what it left behind, in lines: reasons, the broken link with what was expected and
    /// found, console, last exits, registers, code around RIP, memory map. Empty for one that passed or did not run.
    ///
    /// A guest's text may hold anything: no control character of it comes out.
    pub fn explanation(&self) -> String {
        let mut text = String::new();
        if !matches!(self.verdict, Verdict::Pass | Verdict::Skip) {
            // A string takes all that is written.
            let _ = self.explain(&mut text);
        }
        text
    }

    fn explain(&self, text: &mut String) -> fmt::Result {
        for reason in self.reasons.iter().take(REASONS) {
            writeln!(text, "{}", plain(reason))?;
        }
        if let Some(more) = self.reasons.len().checked_sub(REASONS).filter(|&more| more > 0) {
            writeln!(text, "... and {more} more")?;
        }
        if let Some(chain) = self.chains.iter().find(|chain| chain.is_wrong()) {
            part(text, "the first page that is wrong", chain.to_string().lines())?;
        }
        let Some(run) = &self.run else { return Ok(()) };
        part(text, "console", run.console.lines().map(|line| format!("| {}", plain(line))))?;
        part(text, "last exits", run.exits.last.iter().map(Exits::line))?;
        part(text, &format!("registers of vCPU {}", run.vcpu), run.regs.to_string().lines())?;
        if let Some(scene) = &self.scene {
            part(text, "code", &scene.code)?;
            part(text, "memory", scene.memory.iter().map(|line| plain(line)))?;
        }
        Ok(())
    }
}

/// A heading and what is below it, if there is anything.
fn part<T: fmt::Display>(text: &mut String, name: &str, lines: impl IntoIterator<Item = T>) -> fmt::Result {
    let mut lines = lines.into_iter().peekable();
    if lines.peek().is_some() {
        writeln!(text, "{name}:")?;
    }
    lines.try_for_each(|line| writeln!(text, "    {line}"))
}

/// A line of a guest's without what would do something to a terminal: control characters, and those that turn the
/// direction of text (Unicode's `Bidi_Control`).
pub fn plain(line: &str) -> String {
    let turns = |letter| matches!(letter, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    line.chars().filter(|&letter| letter == '\t' || !letter.is_control() && !turns(letter)).collect()
}

impl Chain {
    /// Whether a comparison has failed.
    pub fn is_wrong(&self) -> bool {
        self.checks.iter().any(|check| matches!(check.outcome, Outcome::Wrong(_)))
    }

    /// What came of one link's comparisons, but for those that agree.
    fn notes(&self, f: &mut fmt::Formatter<'_>, link: LinkKind) -> fmt::Result {
        for check in self.checks.iter().filter(|check| check.link == link) {
            match &check.outcome {
                Outcome::Ok => {}
                Outcome::Wrong(how) => writeln!(f, "    WRONG {link}, {}: {how}", check.what)?,
                Outcome::NotChecked(why) => writeln!(f, "    not checked: {link}, {}: {why}", check.what)?,
            }
        }
        Ok(())
    }
}

/// The chain step by step; what is wrong stands where the chain is broken.
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const TABLES: [&str; 6] = ["", "PT", "PD", "PDPT", "PML4", "PML5"];
        writeln!(f, "GVA {}", self.gva)?;
        for step in self.guest_walk.iter() {
            let table = TABLES[usize::from(step.level)];
            writeln!(f, "    {table:<4} {:#x} [{:>3}] = {:#018x}", step.table, step.index, step.entry)?;
        }
        self.notes(f, LinkKind::GvaToGpa)?;
        let page = self.guest_page.map(|size| format!("  ({size} page of the guest)"));
        let fault = self.guest_fault.map(|fault| format!("  ({fault})"));
        writeln!(f, " -> GPA {}{}", shown(self.gpa), page.or(fault).unwrap_or_default())?;
        self.notes(f, LinkKind::GpaToHva)?;
        let region = plain(self.region.as_deref().unwrap_or("no region"));
        let slot = shown(self.slot.map(|slot| slot.0));
        writeln!(f, " -> HVA {}  ({region}, slot {slot})", shown(self.hva))?;
        self.notes(f, LinkKind::HvaToHpa)?;
        writeln!(f, " -> HPA {}", shown(self.hpa))?;
        if let Some(leaf) = &self.leaf {
            let (entry, at, size, rights) = (leaf.entry, leaf.entry_address, leaf.size, letters(leaf.rights));
            let page = leaf.hpa.align_down(PageSize::Size4K);
            writeln!(f, "    second level: leaf {entry:#018x} at {at}: {size} page at {page}, {rights}")?;
        }
        self.notes(f, LinkKind::SecondLevel)
    }
}

fn shown<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
