//! `memvirt`: runs guests, shows where their memory is, says what this host offers.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
