//! Every guest on every machine. `MEMVIRT_REQUIRE=kvm` turns a machine that is missing here into a failure;
//! `MEMVIRT_REQUIRE=kvm,live` does so, too, where KVM's own tables cannot be read.

use std::process::ExitCode;

use guest_tests::{Guest, Image};
use harness::{Mmu, Verdict, run_guest};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let mut trials = vec![Trial::test("env::machines", required_machines_are_here)];
    for mmu in Mmu::ALL {
        let missing = mmu.unavailable();
        if let Some(why) = &missing {
            // Standard output belongs to the test list.
            eprintln!("{mmu}: ignored, {why}");
        }
        trials.extend(guest_tests::built_in().map(|guest| trial(guest, mmu, missing.clone())));
    }
    libtest_mimic::run(&args, trials).exit_code()
}

fn trial(guest: Guest, mmu: Mmu, missing: Option<String>) -> Trial {
    let image = Image::parse(guest.elf.to_vec());
    let missing = missing.or_else(|| mmu.unsuited(image.as_ref().ok()?));
    let area = image.as_ref().map(|image| image.manifest().area).unwrap_or_default();
    let ignored = missing.is_some();
    let test = move || match missing {
        // `--include-ignored` runs it all the same: it must not look like a pass.
        Some(why) => Err(Failed::from(format!("cannot run here: {why}"))),
        None => run(guest.name, &image?, mmu),
    };
    Trial::test(format!("{mmu}::{}::{}", area.word(), guest.name), test).with_ignored_flag(ignored)
}

fn run(name: &str, image: &Image, mmu: Mmu) -> Result<(), Failed> {
    let report = run_guest(name, image, mmu)?;
    match report.verdict {
        Verdict::Pass => Ok(()),
        verdict => Err(format!("{}: {}", verdict.word(), report.explanation()).into()),
    }
}

fn required_machines_are_here() -> Result<(), Failed> {
    let required = std::env::var("MEMVIRT_REQUIRE").unwrap_or_default();
    for name in required.split(',').filter(|name| !name.is_empty()) {
        if name == "live" {
            vcpu::kvm::live_kernel().map_err(|why| format!("MEMVIRT_REQUIRE names live, but {why}"))?;
            continue;
        }
        let mmu: Mmu = name.parse()?;
        if let Some(why) = mmu.unavailable() {
            return Err(format!("MEMVIRT_REQUIRE names {mmu}, which cannot run here: {why}").into());
        }
    }
    Ok(())
}
