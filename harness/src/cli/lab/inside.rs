//! What the first process of a lab's Linux does: the guests, or a program.

use std::io::{self, BufRead, BufReader};
use std::process::{self, ExitCode};
use std::thread;

use clap::Parser;
use ept::live::Trace;
use harness::Mmu;
use harness::lab::init::{self, Port};
use harness::lab::{GuestReport, Message, Orders};
use harness::report::Page;

use super::{Args, run};
use crate::cli::{Cli, Command, output};

/// The work of the first process of a lab. It does not come back, but for an error.
pub(crate) fn inside() -> ExitCode {
    let error = init::run(work);
    output::complain(&error);
    ExitCode::FAILURE
}

fn work(orders: &Orders, port: &mut Port) -> io::Result<()> {
    let cli = Cli::try_parse_from(&orders.arguments).map_err(io::Error::other)?;
    let Command::Lab(Args { options, program, report: wants_page, .. }) = cli.command else {
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
        let mut page = wants_page.as_ref().map(|_| Page::default());
        port.send(&match run(&guest, Mmu::Lab(orders.lab), page.as_mut()) {
            Ok((report, second_level)) => Message::Report(GuestReport {
                verdict: report.verdict,
                text: options.text(&report),
                guest: report.guest,
                second_level,
                page,
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
