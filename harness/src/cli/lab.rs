//! `memvirt lab`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use harness::Mmu;
use harness::lab::init::{self, Port};
use harness::lab::{GuestReport, Kernel, Lab, LabError, Message, Orders, Session, setup_line};

use super::run::Options;
use super::{Cli, Command, Status, output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which lab: npt (QEMU) or ept (Bochs).
    #[arg(required_unless_present = "setup")]
    lab: Option<Lab>,
    /// Print the line for a shell that installs the packages of both labs.
    #[arg(long, exclusive = true)]
    setup: bool,
    /// A folder with another Linux, as an unpacked package has it: vmlinuz and KVM's modules.
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Seconds that all of it may take.
    #[arg(long, default_value = "300")]
    budget: u64,
    #[command(flatten)]
    options: Options,
}

pub(crate) fn lab(args: &Args) -> io::Result<Status> {
    let mut out = io::stdout().lock();
    let Some(lab) = args.lab else {
        writeln!(out, "{}", setup_line())?;
        return Ok(Status::AsExpected);
    };
    if args.options.list {
        return super::run::list(&mut out);
    }
    // What is wrong with a guest is told at once, not after a boot.
    if let Some(error) = args.options.guests().find_map(Result::err) {
        output::complain(&error);
        return Ok(Status::Trouble);
    }
    let mut session = match open(lab, args) {
        Ok(session) => session,
        Err(error) => {
            output::complain(&error);
            return Ok(Status::Trouble);
        }
    };
    // A guest that cannot run there is trouble only for who has asked for it.
    let by_name = !args.options.guests.is_empty();
    let mut status = Status::AsExpected;
    loop {
        match session.next_message() {
            Ok(Message::Ready | Message::Begin(_)) => {}
            Ok(Message::Report(report)) => {
                write!(out, "{}", report.text)?;
                out.flush()?;
                status = status.max(Status::of(report.verdict, by_name));
            }
            Ok(Message::Trouble(error)) => {
                output::complain(&error);
                status = Status::Trouble;
            }
            Ok(Message::End) => return Ok(status),
            Err(ended) => {
                for line in &ended.console {
                    eprintln!("     | {line}");
                }
                output::complain(&format!("lab {lab}: {ended}"));
                return Ok(Status::Trouble);
            }
        }
    }
}

fn open(lab: Lab, args: &Args) -> Result<Session, LabError> {
    let kernel = match &args.kernel {
        Some(folder) => Kernel::below(folder)?,
        None => Kernel::cached()?,
    };
    // Inside, the same program reads the same command line.
    let orders = Orders {
        lab,
        arguments: std::env::args().collect(),
        folder: std::env::current_dir().map_err(LabError::system("the current folder"))?,
    };
    let names = args.options.guests.iter().map(PathBuf::from).chain(args.options.initrd.clone());
    let built_in = |name: &PathBuf| guest_tests::built_in().any(|guest| name.as_os_str() == guest.name);
    let files: Vec<_> = names.filter(|name| !built_in(name)).collect();
    Session::start(&orders, &kernel, &files, Duration::from_secs(args.budget))
}

/// The work of the first process of a lab. It does not come back, but for an error.
pub(crate) fn inside() -> ExitCode {
    let error = init::run(work);
    output::complain(&error);
    ExitCode::FAILURE
}

fn work(orders: &Orders, port: &mut Port) -> io::Result<()> {
    let cli = Cli::try_parse_from(&orders.arguments).map_err(io::Error::other)?;
    let Command::Lab(Args { options, .. }) = cli.command else {
        return Err(io::Error::other("the orders are no command for a lab"));
    };
    for guest in options.guests() {
        let guest = guest.map_err(io::Error::other)?;
        port.send(&Message::Begin(guest.name.clone()))?;
        port.send(&match options.report(&guest, Mmu::Lab(orders.lab)) {
            Ok(report) => Message::Report(GuestReport {
                verdict: report.verdict,
                text: options.text(&report),
                guest: report.guest,
            }),
            Err(error) => Message::Trouble(error),
        })?;
    }
    Ok(())
}
