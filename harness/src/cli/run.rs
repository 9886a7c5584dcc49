//! `memvirt run`.

use std::io::{self, Write};
use std::path::PathBuf;

use guest_tests::{BootSpec, Bytes, GuestError, Image, VendorSpec};
use harness::{Mmu, Report, Verdict, run_guest};

use super::source::{self, Columns, Source};
use super::{Status, output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Names of built-in guests, or ELF files.
    guests: Vec<String>,
    /// The machine to run on: ept, npt or shadow (software), kvm, or all.
    #[arg(long, default_value = "ept")]
    mmu: Columns,
    /// List the built-in guests and what each shows.
    #[arg(long, conflicts_with_all = ["guests", "json", "chains"])]
    list: bool,
    /// One JSON object a line for each guest and machine.
    #[arg(long)]
    json: bool,
    /// RAM at address 0 (64K, 16M, 1G), whatever the manifest says.
    #[arg(long)]
    memory: Option<Bytes>,
    /// Seconds that it may take, whatever the manifest says.
    #[arg(long)]
    timeout: Option<u32>,
    /// The initial RAM disk of a Linux kernel, or of one booted by PVH.
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// The kernel's command line, instead of the manifest's.
    #[arg(long, allow_hyphen_values = true)]
    append: Option<String>,
    /// Processors, of which the guest starts all but the first itself; one for a long-mode boot.
    #[arg(long)]
    vcpus: Option<u32>,
    /// The name of the software machine's processor: intel, amd or memvirt.
    #[arg(long)]
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
    if args.list {
        return list(&mut out);
    }
    let found: Vec<_> = match args.guests.as_slice() {
        [] => source::built_in().collect(),
        names => names.iter().map(|name| source::find(name)).collect(),
    };
    let chains = args.chains || args.guests.len() == 1;
    let mut status = Status::AsExpected;
    for guest in found {
        let guest = match guest.and_then(|guest| args.change(guest)) {
            Ok(guest) => guest,
            Err(error) => {
                output::complain(&error);
                status = Status::Trouble;
                continue;
            }
        };
        for mmu in args.mmu.list() {
            status = status.max(one(&mut out, args, &guest, mmu, chains)?);
        }
    }
    Ok(status)
}

impl Args {
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
}

/// Runs one guest on one machine and prints what came of it.
fn one(out: &mut impl Write, args: &Args, guest: &Source, mmu: Mmu, chains: bool) -> io::Result<Status> {
    let report = match mmu.unavailable().or_else(|| mmu.unsuited(&guest.image)) {
        Some(why) => Report::skipped(&guest.name, mmu, why),
        None => match run_guest(&guest.name, &guest.image, mmu) {
            Ok(report) => report,
            Err(error) => {
                output::complain(&format!("{} on {mmu}: {error}", guest.name));
                return Ok(Status::Trouble);
            }
        },
    };
    if args.json {
        writeln!(out, "{}", output::json(&report))?;
    } else {
        writeln!(out, "{}", output::summary(&report))?;
        if args.console {
            write!(out, "{}", output::console(&report))?;
        }
        if chains && !report.chains.is_empty() {
            write!(out, "{}", output::chains(&report.chains))?;
        }
        if chains {
            write!(out, "{}", output::not_checked(&report))?;
        }
        write!(out, "{}", output::failure(&report))?;
    }
    out.flush()?;
    Ok(match (report.verdict, args.mmu) {
        (Verdict::Pass, _) | (Verdict::Skip, Columns::All) => Status::AsExpected,
        // Asked for by name, and this host does not have it.
        (Verdict::Skip, Columns::One(_)) => Status::Trouble,
        _ => Status::Failed,
    })
}

fn list(out: &mut impl Write) -> io::Result<Status> {
    let mut status = Status::AsExpected;
    for guest in source::built_in() {
        match guest {
            Ok(guest) => writeln!(out, "{:<20} {}", guest.name, guest.image.manifest().summary)?,
            Err(error) => {
                output::complain(&error);
                status = Status::Trouble;
            }
        }
    }
    Ok(status)
}
