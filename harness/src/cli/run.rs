//! `memvirt run`.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use guest_tests::{BootSpec, Bytes, GuestError, Image, VendorSpec};
use harness::report::Page;
use harness::{Mmu, Report, Verdict, run_guest};

use super::progress::Progress;
use super::source::{self, Columns, Source};
use super::{Status, output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The machine to run on: ept, npt or shadow (software), kvm, or all.
    #[arg(long, default_value = "ept")]
    mmu: Columns,
    /// Write a page for people, with all that was found: one HTML file that needs no network.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) options: Options,
}

/// What holds of a run on any machine.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Names of built-in guests or of their areas, ELF files, or sources in assembly (.S), C (.c) or Rust (.rs).
    #[arg(value_name = "GUEST")]
    pub(crate) guests: Vec<String>,
    /// List the built-in guests: area, name, and what each shows.
    #[arg(long, conflicts_with_all = ["guests", "json", "chains"])]
    pub(crate) list: bool,
    /// One JSON object a line for each guest and machine.
    #[arg(long)]
    pub(crate) json: bool,
    /// RAM at address 0 (64K, 16M, 1G), whatever the manifest says.
    #[arg(long, value_name = "SIZE")]
    memory: Option<Bytes>,
    /// Seconds that a guest may take, whatever its manifest says.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u32>,
    /// The initial RAM disk of a Linux kernel, or of one booted by PVH.
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line, instead of the manifest's.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// How many processors there are. At most 4 for a guest in long mode; others start all but the first themselves.
    #[arg(long, value_name = "NUMBER")]
    vcpus: Option<u32>,
    /// Who the software machine's processors say has made them: intel, amd or memvirt.
    #[arg(long, value_name = "NAME")]
    vendor: Option<VendorSpec>,
    /// The software machine's processors have no x2APIC mode.
    #[arg(long)]
    no_x2apic: bool,
    /// Show what each guest wrote to its console.
    #[arg(long, conflicts_with = "json")]
    console: bool,
    /// Show the chain of each page, also of more than one guest.
    #[arg(long, conflicts_with = "json")]
    chains: bool,
}

pub(crate) fn run(args: &Args) -> io::Result<Status> {
    let mut out = io::stdout().lock();
    let options = &args.options;
    if options.list {
        return list(&mut out);
    }
    let guests: Vec<_> = options.guests().collect();
    let (machines, mut page) = (args.mmu.list(), args.report.as_ref().map(|_| Page::default()));
    let progress = Progress::new(guests.len() * machines.len());
    let (mut tally, mut status) = (Tally::default(), Status::AsExpected);
    for guest in guests {
        let guest = match guest {
            Ok(guest) => guest,
            Err(error) => {
                progress.clear();
                output::complain(&error);
                status = Status::Trouble;
                continue;
            }
        };
        for &mmu in &machines {
            progress.step(format!("{} on {mmu}", guest.name));
            let report = options.report(&guest, mmu, page.as_mut());
            progress.clear();
            status = status.max(match report {
                Ok(report) => {
                    write!(out, "{}", options.text(&report))?;
                    out.flush()?;
                    tally.add(report.verdict);
                    Status::of(report.verdict, matches!(args.mmu, Columns::One(_)))
                }
                Err(error) => {
                    output::complain(&error);
                    Status::Trouble
                }
            });
        }
    }
    drop(progress);
    if !options.json {
        write!(out, "{}", tally.text())?;
    }
    let saved = args.report.as_deref().zip(page).map(|(path, page)| output::save(path, &page));
    Ok(status.max(saved.unwrap_or(Status::AsExpected)))
}

/// What is to be said of a guest that cannot run there; the page says it too.
pub(super) fn skipped(guest: &Source, mmu: Mmu, page: Option<&mut Page>) -> Option<Report> {
    let why = mmu.unavailable().or_else(|| mmu.unsuited(&guest.image))?;
    let report = Report::skipped(&guest.name, mmu, why);
    page.into_iter().for_each(|page| page.add_report(&report, &guest.image));
    Some(report)
}

/// How many runs came to what.
pub(super) struct Tally {
    verdicts: BTreeMap<&'static str, usize>,
    since: Instant,
}

impl Default for Tally {
    fn default() -> Self {
        Self { verdicts: BTreeMap::new(), since: Instant::now() }
    }
}

impl Tally {
    pub(super) fn add(&mut self, verdict: Verdict) {
        *self.verdicts.entry(verdict.word()).or_default() += 1;
    }

    /// A line for two runs or more.
    pub(super) fn text(&self) -> String {
        let runs: usize = self.verdicts.values().sum();
        if runs < 2 {
            return String::new();
        }
        let counts: Vec<_> = self.verdicts.iter().map(|(word, count)| format!("{count} {word}")).collect();
        format!("{runs} runs in {:.1} s: {}\n", self.since.elapsed().as_secs_f64(), counts.join(", "))
    }
}

impl Status {
    /// What a guest's verdict makes of the exit status; the machine may be one that was asked for by name.
    pub(crate) fn of(verdict: Verdict, by_name: bool) -> Self {
        match verdict {
            Verdict::Pass => Self::AsExpected,
            // This host does not have it.
            Verdict::Skip if by_name => Self::Trouble,
            Verdict::Skip => Self::AsExpected,
            _ => Self::Failed,
        }
    }
}

impl Options {
    /// The guests that the command line names, as it wants them; all built-in ones if it names none.
    pub(crate) fn guests(&self) -> impl Iterator<Item = Result<Source, String>> {
        let found: Vec<_> = match self.guests.as_slice() {
            [] => source::built_in().collect(),
            names => names.iter().flat_map(|name| source::find_all(name)).collect(),
        };
        found.into_iter().map(|guest| guest.and_then(|guest| self.change(guest)))
    }

    /// The guest on the machine that the command line asks for.
    fn change(&self, Source { name, image }: Source) -> Result<Source, String> {
        let mut image = self.change_image(&name, image).map_err(|error| format!("{name}: {error}"))?;
        if let Some(path) = &self.initrd {
            let initrd = source::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            image = image.with_initrd(initrd).map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(Source { name, image })
    }

    fn change_image(&self, name: &str, image: Image) -> Result<Image, GuestError> {
        let mut manifest = image.manifest().clone();
        let budget = &mut manifest.budget;
        budget.ms = self.timeout.map_or(budget.ms, |seconds| u64::from(seconds) * 1000);
        let machine = &mut manifest.machine;
        machine.memory = self.memory.unwrap_or(machine.memory);
        machine.vcpus = self.vcpus.unwrap_or(machine.vcpus);
        machine.x2apic &= !self.no_x2apic;
        machine.vendor = self.vendor.unwrap_or(machine.vendor);
        if let Some(text) = &self.append {
            text.clone_into(&mut machine.command_line);
        } else if machine.command_line.is_empty() && image.boot() == BootSpec::Multiboot {
            name.clone_into(&mut machine.command_line);
        }
        image.with_manifest(manifest)
    }

    /// Runs one guest on one machine, if it can run there; for the page too, if there is one.
    pub(crate) fn report(
        &self,
        guest: &Source,
        mmu: Mmu,
        mut page: Option<&mut Page>,
    ) -> Result<Report, String> {
        if let Some(report) = skipped(guest, mmu, page.as_deref_mut()) {
            return Ok(report);
        }
        let Source { name, image } = guest;
        let report = match page {
            Some(page) => page.run_guest(name, image, mmu),
            None => run_guest(name, image, mmu),
        };
        report.map_err(|error| format!("{name} on {mmu}: {error}"))
    }

    /// Whether all is to be seen of each guest: where it is asked for, and of one that is run alone.
    pub(crate) fn shows_chains(&self) -> bool {
        self.chains || matches!(&self.guests[..], [guest] if source::area(guest).is_none())
    }

    /// What the command line wants to see of a report.
    pub(crate) fn text(&self, report: &Report) -> String {
        if self.json {
            return output::json(report) + "\n";
        }
        let mut text = output::summary(report) + "\n";
        if self.console {
            text += &output::console(report);
        }
        let chains = self.shows_chains();
        if chains && !report.chains.is_empty() {
            text += &output::chains(&report.chains);
        }
        if chains {
            text += &output::not_checked(report);
        }
        text + &output::failure(report)
    }
}

/// The built-in guests, by area.
pub(crate) fn list(out: &mut impl Write) -> io::Result<Status> {
    let (mut guests, mut status) = (Vec::new(), Status::AsExpected);
    for guest in source::built_in() {
        match guest {
            Ok(guest) => guests.push(guest),
            Err(error) => {
                output::complain(&error);
                status = Status::Trouble;
            }
        }
    }
    guests.sort_by_key(|guest| guest.image.manifest().area.word());
    for guest in guests {
        let manifest = guest.image.manifest();
        writeln!(out, "{:<10} {:<20} {}", manifest.area.word(), guest.name, manifest.summary)?;
    }
    Ok(status)
}
