//! `memvirt lab`.

mod inside;
mod visit;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use harness::lab::{Kernel, Lab, LabError, Orders, Seen, Session, setup_line};
use harness::report::Page;
use harness::{HarnessError, Machine, Mmu, Report, judge};
use vcpu::Witness;

pub(crate) use self::inside::inside;
use self::visit::Visit;
use super::run::{Options, skipped};
use super::source::{self, Source};
use super::{Status, output};

/// In a lab, so many times as long may a guest run before the host comes between: a vCPU has hardly been entered in what is a
/// turn elsewhere.
const PACE: u32 = 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which lab: npt (QEMU) or ept (Bochs).
    #[arg(required_unless_present = "setup")]
    lab: Option<Lab>,
    /// Print a line for a shell that installs what both labs lack.
    #[arg(long, exclusive = true)]
    setup: bool,
    /// A folder with another Linux, as an unpacked package has it: vmlinuz and KVM's modules.
    #[arg(long, value_name = "FOLDER")]
    kernel: Option<PathBuf>,
    /// Seconds that all of it may take.
    #[arg(long, value_name = "SECONDS", default_value = "540")]
    budget: u64,
    /// Instead of guests, a Linux program that needs no other libraries than this one; all that follows is its own.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, conflicts_with_all = ["guests", "report"])]
    program: Vec<String>,
    /// Write a page for people: each guest in the lab, and beside it on its model.
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    #[command(flatten)]
    options: Options,
}

pub(crate) fn lab(args: &Args) -> io::Result<Status> {
    let mut out = io::stdout().lock();
    let Some(lab) = args.lab else {
        match setup_line() {
            Some(line) => writeln!(out, "{line}")?,
            None => output::complain(&"all packages that labs need are here"),
        }
        return Ok(Status::AsExpected);
    };
    if args.options.list {
        return super::run::list(&mut out);
    }
    // What is wrong with a guest is told at once, not after a boot.
    let guests: Result<Vec<Source>, _> = args.options.guests().collect();
    let opened = guests.map_err(|error| error.to_string()).and_then(|guests| {
        let session = open(lab, args).map_err(|error| error.to_string())?;
        Ok((guests, session))
    });
    match opened {
        Ok((guests, mut session)) => Visit::new(lab, args, guests, &mut out).follow(&mut session),
        Err(error) => {
            output::complain(&error);
            Ok(Status::Trouble)
        }
    }
}

fn open(lab: Lab, args: &Args) -> Result<Session, LabError> {
    let kernel = match &args.kernel {
        Some(folder) => Kernel::below(folder)?,
        None => Kernel::cached()?,
    };
    let names = args.options.guests.iter().map(PathBuf::from).chain(args.options.initrd.clone());
    let built_in = |name: &PathBuf| name.to_str().is_some_and(source::is_built_in);
    let orders = Orders {
        lab,
        // Inside, the same program reads the same command line.
        arguments: std::env::args().collect(),
        folder: std::env::current_dir().map_err(LabError::system("the current folder"))?,
        files: names.filter(|name| !built_in(name)).collect(),
        programs: args.program.first().map(PathBuf::from).into_iter().collect(),
    };
    Session::start(&orders, &kernel, Duration::from_secs(args.budget))
}

/// Runs a guest, here or in the lab, looks at its second level at the end, and puts all of it on the page.
fn run(guest: &Source, mmu: Mmu, mut page: Option<&mut Page>) -> Result<(Report, Seen), HarnessError> {
    if let Some(report) = skipped(guest, mmu, page.as_deref_mut()) {
        return Ok((report, Seen::default()));
    }
    let mut machine = Machine::build(guest.image.clone(), mmu.create_vm(&guest.image)?)?;
    if page.is_some() {
        machine.record();
    }
    if let Mmu::Lab(lab) = mmu {
        // KVM's tables and counts are held against its trace events from here on.
        machine.host().record_faults();
        machine.slow_down(PACE);
        if lab == Lab::Ept {
            machine.start_interruptible()?;
        }
    }
    let run = machine.run()?;
    let mut report = judge(&guest.name, mmu, &mut machine, run)?;
    if let (Mmu::Lab(_), Witness::NotShown(why)) = (mmu, machine.host().faults()) {
        report.unchecked.push(why.into_owned());
    }
    page.map_or(Ok(()), |page| page.add_machine(&report, &mut machine))?;
    Ok((report, Seen::of(machine.host())))
}
