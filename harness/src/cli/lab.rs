//! `memvirt lab`.

use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use clap::Parser;
use ept::live::Trace;
use harness::lab::init::{self, Port};
use harness::lab::{
    Comparison, GuestReport, Kernel, Lab, LabError, Message, Orders, Seen, Session, setup_line,
};
use harness::{HarnessError, Machine, Mmu, Report, Verdict, judge};
use vcpu::Witness;

use super::progress::Progress;
use super::run::{Options, Tally};
use super::source::{self, Source};
use super::{Cli, Command, Status, output};

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
    #[arg(long, num_args = 1.., allow_hyphen_values = true, conflicts_with = "guests")]
    program: Vec<String>,
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
    let guests: Vec<Source> = match args.options.guests().collect() {
        Ok(guests) => guests,
        Err(error) => {
            output::complain(&error);
            return Ok(Status::Trouble);
        }
    };
    let mut session = match open(lab, args) {
        Ok(session) => session,
        Err(error) => {
            output::complain(&error);
            return Ok(Status::Trouble);
        }
    };
    let steps = if args.program.is_empty() { guests.len() } else { 0 };
    let mut progress = Some(Progress::new(1 + steps));
    progress.iter().for_each(|progress| progress.step(format!("Linux, in lab {lab}")));
    // A guest that cannot run there is trouble only for who has asked for it.
    let by_name = !args.options.guests.is_empty();
    let (mut tally, mut status) = (Tally::default(), Status::AsExpected);
    loop {
        let message = session.next_message();
        progress.iter().for_each(Progress::clear);
        match message {
            // A program tells itself where it is.
            Ok(Message::Ready) if steps == 0 => progress = None,
            Ok(Message::Ready | Message::Exit(true)) => {}
            Ok(Message::Begin(guest)) => {
                progress.iter().for_each(|progress| progress.step(format!("{guest} in lab {lab}")));
            }
            Ok(Message::Report(report)) => {
                let guest = guests.iter().find(|guest| guest.name == report.guest);
                match guest.map_or(Ok(report.text.clone()), |guest| text(&args.options, lab, guest, &report))
                {
                    Ok(text) => write!(out, "{text}")?,
                    Err(error) => {
                        output::complain(&error);
                        status = Status::Trouble;
                    }
                }
                out.flush()?;
                tally.add(report.verdict);
                status = status.max(Status::of(report.verdict, by_name));
            }
            Ok(Message::Line(line)) => writeln!(out, "{line}")?,
            Ok(Message::Exit(false)) => status = status.max(Status::Failed),
            Ok(Message::Trouble(error)) => {
                output::complain(&error);
                status = Status::Trouble;
            }
            Ok(Message::End) => break,
            Err(ended) => {
                drop(progress);
                for line in &ended.console {
                    eprintln!("     | {line}");
                }
                output::complain(&format!("lab {lab}: {ended}"));
                return Ok(Status::Trouble);
            }
        }
    }
    drop(progress);
    if !args.options.json {
        write!(out, "{}", tally.text())?;
    }
    Ok(status)
}

/// A report as `memvirt run` gives it, with what its model says to it.
fn text(options: &Options, lab: Lab, guest: &Source, report: &GuestReport) -> Result<String, String> {
    if report.verdict == Verdict::Skip {
        return Ok(report.text.clone());
    }
    let model = run(guest, lab.model());
    let (_, model) = model.map_err(|error| format!("{} on {}: {error}", guest.name, lab.model()))?;
    let found = Comparison::of(lab, &report.second_level, &model);
    if options.json {
        let mut line: serde_json::Value =
            serde_json::from_str(&report.text).map_err(|error| error.to_string())?;
        line["model"] = serde_json::to_value(found).map_err(|error| error.to_string())?;
        return Ok(format!("{line}\n"));
    }
    let shown = options.shows_chains() || !found.is_alike();
    Ok(if shown { format!("{}{found}", report.text) } else { report.text.clone() })
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

/// The work of the first process of a lab. It does not come back, but for an error.
pub(crate) fn inside() -> ExitCode {
    let error = init::run(work);
    output::complain(&error);
    ExitCode::FAILURE
}

fn work(orders: &Orders, port: &mut Port) -> io::Result<()> {
    let cli = Cli::try_parse_from(&orders.arguments).map_err(io::Error::other)?;
    let Command::Lab(Args { options, program, .. }) = cli.command else {
        return Err(io::Error::other("the orders are no command for a lab"));
    };
    if let [program, arguments @ ..] = program.as_slice() {
        return execute(program, arguments, port);
    }
    // The kernel switches a trace event on with its first watch and off with its last, and waits long each time: once is enough.
    // Of a thread that is gone nothing is recorded.
    let _switched_on = thread::spawn(Trace::start).join();
    for guest in options.guests() {
        let guest = guest.map_err(io::Error::other)?;
        port.send(&Message::Begin(guest.name.clone()))?;
        port.send(&match run(&guest, Mmu::Lab(orders.lab)) {
            Ok((report, second_level)) => Message::Report(GuestReport {
                verdict: report.verdict,
                text: options.text(&report),
                guest: report.guest,
                second_level,
            }),
            Err(error) => Message::Trouble(format!("{} on {}: {error}", guest.name, orders.lab.column())),
        })?;
    }
    Ok(())
}

/// Runs a Linux program, and sends what it writes.
fn execute(program: &str, arguments: &[String], port: &mut Port) -> io::Result<()> {
    let (lines, writer) = io::pipe()?;
    let mut command = process::Command::new(std::path::absolute(program)?);
    command.args(arguments).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn()?;
    // The pipe ends when the child's ends of it do.
    drop(command);
    for line in BufReader::new(lines).split(b'\n') {
        port.send(&Message::Line(String::from_utf8_lossy(&line?).into_owned()))?;
    }
    port.send(&Message::Exit(child.wait()?.success()))
}

/// Runs a guest, and looks at its second level at the end.
fn run(guest: &Source, mmu: Mmu) -> Result<(Report, Seen), HarnessError> {
    if let Some(why) = mmu.unavailable().or_else(|| mmu.unsuited(&guest.image)) {
        return Ok((Report::skipped(&guest.name, mmu, why), Seen::default()));
    }
    let mut machine = Machine::build(guest.image.clone(), mmu.create_vm(&guest.image)?)?;
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
    Ok((report, Seen::of(machine.host())))
}
