//! `memvirt map`.

use std::io::{self, Write};

use guest_tests::Location;
use harness::{Chain, HarnessError, Known, Machine, Mmu, Observer};
use memory_model::Gva;

use super::source::{self, Source};
use super::{Status, output};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The name of a built-in guest, or an ELF file.
    guest: String,
    /// Guest-virtual addresses (0x...) or symbols of the guest.
    #[arg(required = true)]
    gva: Vec<Location>,
    /// The machine to run on: ept, npt or shadow (software), or kvm.
    #[arg(long, default_value = "ept")]
    mmu: Mmu,
}

pub(crate) fn map(args: &Args) -> io::Result<Status> {
    let guest = match source::find(&args.guest) {
        Ok(guest) => guest,
        Err(error) => {
            output::complain(&error);
            return Ok(Status::Trouble);
        }
    };
    if let Some(why) = args.mmu.unavailable() {
        output::complain(&format!("{} cannot run here: {why}", args.mmu));
        return Ok(Status::Trouble);
    }
    let chains = match chains(&guest, args) {
        Ok(chains) => chains,
        Err(error) => {
            output::complain(&format!("{} on {}: {error}", guest.name, args.mmu));
            return Ok(Status::Trouble);
        }
    };
    let mut out = io::stdout().lock();
    let mut status = Status::AsExpected;
    for chain in &chains {
        write!(out, "{chain}")?;
        status = status.max(if chain.is_wrong() { Status::Failed } else { Status::AsExpected });
    }
    Ok(status)
}

/// Runs the guest to its end and follows each address.
fn chains(guest: &Source, args: &Args) -> Result<Vec<Chain>, HarnessError> {
    let addresses: Vec<_> = args.gva.iter().map(|gva| guest.image.resolve(gva)).collect::<Result<_, _>>()?;
    let mut machine = Machine::build(guest.image.clone(), args.mmu.create_vm(&guest.image)?)?;
    machine.run()?;
    let follow = |observer: &Observer<'_>| {
        addresses.iter().map(|&gva| observer.follow(Gva(gva), &Known::default())).collect()
    };
    machine.observe(follow)
}
