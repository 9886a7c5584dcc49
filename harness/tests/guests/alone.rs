//! A guest in a process of its own, as nextest has it: whatever becomes of that process, all others go on.

use std::env;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use libtest_mimic::Failed;

/// The name of the only test that such a process runs.
const NAME: &str = "MEMVIRT_TEST";

/// The test that this process was made for.
pub fn wanted() -> Option<String> {
    env::var(NAME).ok()
}

/// Runs a test here, and tells the one who waits.
pub fn tell(outcome: Result<(), Failed>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            print!("{}", failed.message().unwrap_or("failed"));
            ExitCode::FAILURE
        }
    }
}

/// Runs a test in a process of its own, and waits.
pub fn run(name: &str) -> Result<(), Failed> {
    let output = Command::new(env::current_exe()?).env(NAME, name).output()?;
    if output.status.success() {
        return Ok(());
    }
    let died = match output.status.signal() {
        Some(signal) => format!("the process was ended by signal {signal}\n"),
        None if output.status.code() == Some(1) => String::new(),
        None => format!("the process has panicked: {}\n", output.status),
    };
    let (told, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{died}{told}{log}").into())
}
