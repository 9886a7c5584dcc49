//! The command line. Exit status: 0 all as expected, 1 a guest or a check failed, 2 wrong use or host trouble.

mod host;
mod map;
mod output;
mod run;
mod source;
mod tree;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Follows every page a guest touches, GVA -> GPA -> HVA -> HPA, and compares each step with the truth.
#[derive(Parser)]
#[command(version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run guests, built in or from ELF files; all built-in ones if none is named.
    Run(run::Args),
    /// Run a guest, then show the chain of an address, step by step.
    Map(map::Args),
    /// Show a region tree from the text of QEMU's `info mtree`, or what the guest sees of it.
    Tree(tree::Args),
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
    let status = match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Map(args) => map::map(&args),
        Command::Tree(args) => tree::tree(&args),
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
