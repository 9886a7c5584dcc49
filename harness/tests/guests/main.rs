//! Every guest on every machine, each in a process of its own, and each guest's map.
//!
//! | variable | what |
//! |---|---|
//! | `MEMVIRT_REQUIRE=kvm,live` | a failure, where KVM is missing or its own tables cannot be read |
//! | `MEMVIRT_REPORT=FOLDER` | a page for people of each guest on each machine: `FOLDER/ept-first_touch.html` |
//! | `MEMVIRT_BLESS=1` | keeps the maps as they are now |

mod alone;
mod golden;

use std::path::PathBuf;
use std::process::ExitCode;

use guest_tests::{Area, Guest, Image};
use harness::report::Page;
use harness::{Mmu, Report, Verdict, run_guest};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    if let Some(name) = alone::wanted() {
        let test = tests(|guest| name.ends_with(guest.name)).into_iter().find(|test| test.name == name);
        return alone::tell(test.map_or_else(|| Err("no such test".into()), |test| (test.run)()));
    }
    let args = Arguments::from_args();
    // nextest has made a process for it already.
    let alone = args.exact || args.list;
    let trials = tests(|_| true).into_iter().map(|test| test.trial(alone)).collect();
    libtest_mimic::run(&args, trials).exit_code()
}

/// A test, and why it cannot run here.
struct Test {
    name: String,
    missing: Option<String>,
    run: Box<dyn FnOnce() -> Result<(), Failed> + Send>,
}

impl Test {
    fn new(name: impl Into<String>, run: impl FnOnce() -> Result<(), Failed> + Send + 'static) -> Self {
        Self { name: name.into(), missing: None, run: Box::new(run) }
    }

    fn trial(self, alone: bool) -> Trial {
        let Self { name, missing, run } = self;
        let (own, ignored) = (name.clone(), missing.is_some());
        let test = move || match missing {
            // `--include-ignored` runs it all the same: it must not look like a pass.
            Some(why) => Err(Failed::from(format!("cannot run here: {why}"))),
            None if alone => run(),
            None => alone::run(&own),
        };
        Trial::test(name, test).with_ignored_flag(ignored)
    }
}

/// All tests, of some guests alone.
fn tests(of: impl Fn(&Guest) -> bool) -> Vec<Test> {
    let guests = || guest_tests::built_in().filter(&of);
    let mut tests = vec![
        Test::new("env::machines", required_machines_are_here),
        Test::new("golden::orphans", golden::no_orphans),
    ];
    for mmu in Mmu::ALL {
        let missing = mmu.unavailable();
        if let (Some(why), None) = (&missing, alone::wanted()) {
            // Standard output belongs to the test list.
            eprintln!("{mmu}: ignored, {why}");
        }
        tests.extend(guests().map(|guest| guest_test(guest, mmu, missing.clone())));
    }
    tests.extend(guests().filter_map(|guest| {
        let image = Image::parse(guest.elf);
        // How large a compiled program is, is its compiler's.
        let compiled = image.as_ref().is_ok_and(|image| image.manifest().area == Area::Language);
        let missing = golden::missing(guest.name);
        let test = Test::new(format!("golden::{}", guest.name), move || golden::check(guest.name, &image?));
        (!compiled).then_some(Test { missing, ..test })
    }));
    tests
}

fn guest_test(guest: Guest, mmu: Mmu, missing: Option<String>) -> Test {
    let image = Image::parse(guest.elf);
    let missing = missing.or_else(|| mmu.unsuited(image.as_ref().ok()?));
    let area = image.as_ref().map(|image| image.manifest().area).unwrap_or_default();
    let name = format!("{mmu}::{}::{}", area.word(), guest.name);
    Test { missing, ..Test::new(name, move || run(guest.name, &image?, mmu)) }
}

fn run(name: &str, image: &Image, mmu: Mmu) -> Result<(), Failed> {
    let report = match std::env::var_os("MEMVIRT_REPORT") {
        None => run_guest(name, image, mmu)?,
        Some(folder) => run_with_page(name, image, mmu, PathBuf::from(folder))?,
    };
    match report.verdict {
        Verdict::Pass => Ok(()),
        verdict => Err(format!("{}: {}", verdict.word(), report.explanation()).into()),
    }
}

fn run_with_page(name: &str, image: &Image, mmu: Mmu, folder: PathBuf) -> Result<Report, Failed> {
    let mut page = Page::default();
    let report = page.run_guest(name, image, mmu)?;
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(format!("{mmu}-{name}.html")), page.html())?;
    Ok(report)
}

fn required_machines_are_here() -> Result<(), Failed> {
    let required = std::env::var("MEMVIRT_REQUIRE").unwrap_or_default();
    for name in required.split(',').filter(|name| !name.is_empty() && *name != "chromium") {
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
