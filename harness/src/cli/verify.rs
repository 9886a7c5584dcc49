//! `memvirt verify`.

use std::io::{self, Write};

use harness::{HarnessError, Machine, Mmu};
use vcpu::{Verification, Witness};

use super::progress::Progress;
use super::source::{self, Columns, Source};
use super::{Status, output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The name of a built-in guest, or an ELF file.
    guest: String,
    /// The machine to run on: ept, npt or shadow (software), kvm, or all.
    #[arg(long, default_value = "ept")]
    mmu: Columns,
}

pub(crate) fn verify(args: &Args) -> io::Result<Status> {
    let guest = match source::find(&args.guest) {
        Ok(guest) => guest,
        Err(error) => {
            output::complain(&error);
            return Ok(Status::Trouble);
        }
    };
    let mut out = io::stdout().lock();
    let mut status = Status::AsExpected;
    let machines = args.mmu.list();
    let progress = Progress::new(machines.len());
    for mmu in machines {
        progress.step(format!("{} on {mmu}: running and verifying", guest.name));
        let (found, recorded) = match mmu.unavailable() {
            Some(why) => (Witness::NotShown(why.into()), Witness::Absent),
            None => match after_run(&guest, mmu) {
                Ok(found) => found,
                Err(error) => {
                    progress.clear();
                    output::complain(&format!("{} on {mmu}: {error}", guest.name));
                    status = Status::Trouble;
                    continue;
                }
            },
        };
        progress.clear();
        match found {
            Witness::Seen(found) => {
                let verdict = if found.is_clean() { "clean" } else { "WRONG" };
                writeln!(out, "{mmu:<6} {:<20} {verdict}", guest.name)?;
                for line in found.to_string().lines() {
                    writeln!(out, "       {line}")?;
                }
                if let Witness::NotShown(why) = recorded {
                    writeln!(out, "       not checked: what KVM tells of its leaves: {why}")?;
                }
                status = status.max(if found.is_clean() { Status::AsExpected } else { Status::Failed });
            }
            Witness::Absent => {}
            Witness::NotShown(why) => {
                writeln!(out, "{mmu:<6} {:<20} not checked: {why}", guest.name)?;
                // Asked for by name, and this host does not have it.
                if let Columns::One(_) = args.mmu {
                    status = Status::Trouble;
                }
            }
        }
    }
    Ok(status)
}

/// What is seen after the guest has run to its end, whatever that is; and whether changes on the way there are in it.
fn after_run(guest: &Source, mmu: Mmu) -> Result<(Witness<Verification>, Witness<()>), HarnessError> {
    let vm = mmu.create_vm(&guest.image)?;
    let recorded = vm.record();
    let mut machine = Machine::build(guest.image.clone(), vm)?;
    machine.run()?;
    Ok((machine.host().verification(), recorded))
}
