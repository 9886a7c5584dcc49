//! The command line. Exit status: 0 all as expected, 1 a guest or a check failed, 2 wrong use or host trouble.

mod host;
mod inspect;
mod lab;
mod map;
mod new;
mod output;
mod progress;
mod run;
mod source;
mod tree;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Follows every page a guest touches, GVA -> GPA -> HVA -> HPA, and compares each step with the truth.
#[derive(Parser)]
#[command(name = "memvirt", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run guests, built in or from ELF files; all built-in ones if none is named.
    Run(run::Args),
    /// Begin a guest of your own: a program and its manifest, in comments what is what.
    New(new::Args),
    /// Run a guest, then show the chain of an address, step by step.
    Map(map::Args),
    /// Show a region tree from the text of QEMU's `info mtree`, or what the guest sees of it.
    Tree(tree::Args),
    /// Run a guest, then verify every second-level table, entry by entry.
    Verify(verify::Args),
    /// Show the VMs of another process: slots, tables, an address, and what is wrong.
    Inspect(inspect::Args),
    /// Run guests on KVM with real NPT or EPT, inside an emulator.
    Lab(lab::Args),
    /// Say what this host offers, and what is missing for the rest.
    Host,
}

/// What a command came to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Status {
    AsExpected,
    Failed,
    Trouble,
}

/// Reads the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    if harness::lab::init::is_inside() {
        return lab::inside();
    }
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => return wrong_use(&error),
    };
    let status = match command {
        Command::Run(args) => run::run(&args),
        Command::New(args) => new::new(&args),
        Command::Map(args) => map::map(&args),
        Command::Tree(args) => tree::tree(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Lab(args) => lab::lab(&args),
        Command::Host => host::host(),
    };
    match status {
        Ok(Status::AsExpected) => ExitCode::SUCCESS,
        Ok(Status::Failed) => ExitCode::from(1),
        Ok(Status::Trouble) => ExitCode::from(2),
        // Whoever read the output has gone: nobody is left to be told.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::from(2)
        }
    }
}

/// Help goes out as it is; what is wrong with the arguments is one line, as every other complaint.
fn wrong_use(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody is left to be told if this cannot be written.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(2);
    }
    let text = error.to_string();
    let mut paragraphs = text.split("\n\n");
    let reason = paragraphs.next().unwrap_or(&text).trim_start_matches("error: ");
    let tip = paragraphs.next().and_then(|next| next.trim_start().strip_prefix("tip: "));
    let tip = tip.map_or_else(String::new, |tip| format!(": {tip}"));
    let line = format!("{reason}{tip}");
    let words: Vec<_> = line.split_whitespace().collect();
    output::complain(&words.join(" "));
    ExitCode::from(2)
}
