//! The KVM backend, on guests that really run. What this host lacks makes the tests that need it ignored, with the reason;
//! `MEMVIRT_REQUIRE=kvm,live` has them fail where that is missing.

#[macro_use]
mod need;

mod budget;
mod counts;
mod dirty_logs;
mod doorbells;
mod events;
mod exits;
mod guest;
mod guest_memfd;
mod huge_pages;
mod live;
mod means;
mod memory_faults;
mod pre_fault;
mod readonly;
mod remap;
mod shared_faults;
mod slot_changes;
mod uffd;
mod userfaults;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use self::need::{Test, Tests};

const ALL: [Tests; 17] = [
    budget::TESTS,
    counts::TESTS,
    dirty_logs::TESTS,
    doorbells::TESTS,
    events::TESTS,
    exits::TESTS,
    guest_memfd::TESTS,
    huge_pages::TESTS,
    live::TESTS,
    means::TESTS,
    memory_faults::TESTS,
    pre_fault::TESTS,
    readonly::TESTS,
    remap::TESTS,
    shared_faults::TESTS,
    slot_changes::TESTS,
    userfaults::TESTS,
];

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let trials = ALL.into_iter().flatten().map(trial).collect();
    libtest_mimic::run(&args, trials).exit_code()
}

fn trial(test: &Test) -> Trial {
    let name = test.name.split_once("::").map_or(test.name, |(_, name)| name);
    let missing = test.needs.iter().find_map(|need| Some((need, need.missing()?)));
    let required = missing.as_ref().is_some_and(|(need, _)| need.is_required());
    let missing = missing.map(|(_, why)| why);
    if let Some(why) = missing.as_ref().filter(|_| !required) {
        // Standard output belongs to the test list.
        eprintln!("{name}: ignored, {why}");
    }
    let (ignored, act) = (missing.is_some() && !required, test.act);
    let run = move || match missing {
        // `--include-ignored` runs it all the same: it must not look like a pass.
        Some(why) => Err(Failed::from(format!("cannot run here: {why}"))),
        None => {
            act();
            Ok(())
        }
    };
    Trial::test(name, run).with_ignored_flag(ignored)
}
