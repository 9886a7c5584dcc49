//! Text for people and JSON for machines.

use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

pub(crate) use harness::inspect::letters;
use harness::report::Page;
use harness::{Chain, Counts, Report, Verdict, plain};
use serde::Serialize;

use super::Status;

/// To standard error, in one line unless a tool has said more. A file's name or a guest's manifest may be in it: no
/// control character goes out.
pub(crate) fn complain(error: &dyn fmt::Display) {
    let text = error.to_string();
    let lines: Vec<_> = text.lines().map(plain).collect();
    eprintln!("memvirt: {}", lines.join("\n"));
}

/// Writes a page for people.
pub(crate) fn save(path: &Path, page: &Page) -> Status {
    match fs::write(path, page.html()) {
        Ok(()) => Status::AsExpected,
        Err(error) => {
            complain(&format!("{}: {error}", path.display()));
            Status::Trouble
        }
    }
}

/// A report as one JSON object in one line.
pub(crate) fn json(report: &Report) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        guest: &'a str,
        mmu: &'a str,
        verdict: Verdict,
        reasons: &'a [String],
        checks: Counts,
        unchecked: &'a [String],
        violations: Option<u64>,
        elapsed_us: u128,
    }
    let line = Line {
        guest: &report.guest,
        mmu: report.mmu.name(),
        verdict: report.verdict,
        reasons: &report.reasons,
        checks: report.checks,
        unchecked: &report.unchecked,
        violations: report.violations,
        elapsed_us: report.elapsed.as_micros(),
    };
    serde_json::to_string(&line).expect("strings and numbers are always JSON")
}

/// The verdict in one line.
pub(crate) fn summary(report: &Report) -> String {
    let Counts { ok, wrong, unchecked } = report.checks;
    let mut line = format!("{:<6} {:<20} {:<10}", report.mmu, plain(&report.guest), report.verdict.word());
    if report.verdict == Verdict::Skip {
        return format!("{line} {}", plain(&report.reasons.join("; ")));
    }
    let _ = write!(line, " {ok:>5} ok {wrong:>3} wrong {unchecked:>4} not checked");
    match report.violations {
        Some(violations) => _ = write!(line, " {violations:>5} violations"),
        None => line.push_str("     - violations"),
    }
    let _ = write!(line, " {:>9.3} ms", report.elapsed.as_secs_f64() * 1e3);
    line
}

/// Why a guest did not pass, and what it left behind. Empty for one that passed.
pub(crate) fn failure(report: &Report) -> String {
    report.explanation().lines().map(|line| format!("     {line}\n")).collect()
}

/// What the guest wrote, line by line. A guest's text may hold anything: no control character goes out.
pub(crate) fn console(report: &Report) -> String {
    let lines = report.run.iter().flat_map(|run| run.console.lines());
    lines.fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "     | {}", plain(line));
        text
    })
}

/// What could not be checked, and why.
pub(crate) fn not_checked(report: &Report) -> String {
    report.unchecked.iter().fold(String::new(), |mut text, why| {
        let _ = writeln!(text, "     not checked: {}", plain(why));
        text
    })
}

/// The chains of a guest's pages as a table.
pub(crate) fn chains(chains: &[Chain]) -> String {
    const HEAD: [&str; 7] = ["GVA", "GPA", "region", "slot", "HVA", "HPA", "leaf"];
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(chains.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "     {}", cells.join("  ").trim_end());
    }
    text
}

fn row(chain: &Chain) -> [String; 7] {
    let leaf = chain
        .leaf
        .as_ref()
        .map_or_else(|| "-".to_owned(), |leaf| format!("{} {}", leaf.size, letters(leaf.rights)));
    [
        chain.gva.to_string(),
        shown(chain.gpa),
        plain(chain.region.as_deref().unwrap_or("-")),
        shown(chain.slot.map(|slot| slot.0)),
        shown(chain.hva),
        shown(chain.hpa),
        if chain.is_wrong() { format!("{leaf}  WRONG") } else { leaf },
    ]
}

pub(crate) fn shown<T: fmt::Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}
