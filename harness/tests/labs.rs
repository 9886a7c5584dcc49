//! Every guest on KVM with real NPT and real EPT, inside the labs, and its leaves against those of the models.
//!
//! With `MEMVIRT_LABS=1`; each lab boots once for all guests, and twice to see that two runs are the same. A lab that cannot run
//! here fails then.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::sync::OnceLock;

use guest_tests::{Guest, Image};
use harness::Mmu;
use harness::lab::Lab;
use libtest_mimic::{Arguments, Failed, Trial};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The page that explains where the models differ from the real thing.
const EXPLAINED: &str = include_str!("../../docs/labs.md");

fn main() -> ExitCode {
    let args = Arguments::from_args();
    let wanted = std::env::var("MEMVIRT_LABS").is_ok_and(|value| value == "1");
    if !wanted {
        // Standard output belongs to the test list.
        eprintln!("labs: ignored, MEMVIRT_LABS=1 runs them");
    }
    let guests = || guest_tests::built_in();
    let guests = Lab::ALL.into_iter().flat_map(|lab| guests().map(move |guest| trial(guest, lab, wanted)));
    let twice = Lab::ALL.map(|lab| {
        let name = format!("{}::two_runs_are_the_same", lab.column());
        let test =
            move || if wanted { two_runs_are_the_same(lab) } else { Err("MEMVIRT_LABS=1 runs it".into()) };
        Trial::test(name, test).with_ignored_flag(!wanted)
    });
    libtest_mimic::run(&args, guests.chain(twice).collect()).exit_code()
}

/// What the host does between any two instructions of this guest it does between the same ones, and all takes as long. Its page has
/// it beside its model.
fn two_runs_are_the_same(lab: Lab) -> Result<(), Failed> {
    let page = format!("{}/{}.html", env!("CARGO_TARGET_TMPDIR"), lab.column());
    let mut seen = Vec::new();
    for _ in 0..2 {
        let output = run(lab, &["discard_any_time", "--report", &page])?;
        if !output.status.success() {
            return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
        }
        seen.push(String::from_utf8(output.stdout)?);
    }
    if seen[0] != seen[1] || !seen[0].contains(r#""verdict":"pass""#) {
        return Err(seen.concat().into());
    }
    let page = std::fs::read_to_string(page)?;
    let shows = |mmu: Mmu| page.contains(&format!(r#""mmu":"{mmu}""#));
    if !shows(Mmu::Lab(lab)) || !shows(lab.model()) {
        return Err("the page does not show both".into());
    }
    Ok(())
}

fn trial(guest: Guest, lab: Lab, wanted: bool) -> Trial {
    let image = Image::parse(guest.elf.to_vec());
    let area = image.as_ref().map(|image| image.manifest().area).unwrap_or_default();
    let unsuited =
        image.ok().and_then(|image| image.manifest().unsuited.get(&Mmu::Lab(lab).column()).cloned());
    let name = format!("{}::{}::{}", lab.column(), area.word(), guest.name);
    let ignored = !wanted || unsuited.is_some();
    let test = move || match unsuited {
        Some(why) => Err(Failed::from(format!("cannot run there: {why}"))),
        None if wanted => passes(guest.name, lab),
        None => Err("MEMVIRT_LABS=1 runs it".into()),
    };
    Trial::test(name, test).with_ignored_flag(ignored)
}

/// The guest passes; its leaves and its violations are the model's, unless the documentation says why they are not.
fn passes(guest: &str, lab: Lab) -> Result<(), Failed> {
    let visit = visit(lab)?;
    let Some(report) = visit.reports.get(guest) else {
        return Err(format!("no verdict: {}", visit.complaints).into());
    };
    if report["verdict"] != "pass" {
        return Err(format!("{}: {}", report["verdict"], report["reasons"]).into());
    }
    let model = &report["model"];
    if !model["alike"].is_number() {
        return Err(format!("leaves could not be compared: {model}").into());
    }
    let alone =
        ["lab_alone", "model_alone"].map(|key| model[key].as_array().is_some_and(|alone| !alone.is_empty()));
    if alone != [false; 2] && !table("### Leaves").contains(&format!("`{guest}`")) {
        return Err(format!("other leaves than the model's: {model:#}").into());
    }
    let [here, told, there] = ["violations", "violations_told", "model_violations"].map(|key| &model[key]);
    if !here.is_number() || here != told {
        return Err(format!("{here} violations by KVM's statistics, {told} by its trace events").into());
    }
    let both = [there, here].map(Value::as_u64);
    match listed(guest, lab) {
        Some(listed) => {
            let differs = listed.iter().zip(both).any(|(&listed, found)| listed.is_some() && listed != found);
            if differs {
                return Err(
                    format!("violations: model {there}, here {here}, not as listed: {listed:?}").into()
                );
            }
        }
        None if here != there => return Err(format!("{here} violations, {there} of the model").into()),
        None => {}
    }
    Ok(())
}

/// The guests that a section of the page explains: its table, and no prose.
fn table(section: &str) -> &'static str {
    let (_, text) = EXPLAINED.split_once(section).expect("the page has this section");
    text.split_once("\n\n- ").expect("what is below the table").0
}

/// How many violations the page says that a guest has, on the model and in a lab, where it lists the guest. A number that changes
/// with what else the lab does is one with a tilde: `None`.
fn listed(guest: &str, lab: Lab) -> Option<[Option<u64>; 2]> {
    let (_, numbers) = table("### Violations").split_once(&format!("`{guest}` "))?;
    let number = |text: &str| match text.trim() {
        text if text.starts_with('~') => None,
        text => Some(text.parse().unwrap_or_else(|_| panic!("{guest}: {text:?} is no number"))),
    };
    let numbers: Vec<_> = numbers.split([',', '|']).take(1 + Lab::ALL.len()).map(number).collect();
    Some([numbers[0], numbers[1 + lab as usize]])
}

/// What came of one boot of a lab.
#[derive(Clone, Default, Serialize, Deserialize)]
struct Visit {
    /// Of which run of nextest, which has a process for each test.
    run: String,
    reports: HashMap<String, Value>,
    complaints: String,
}

/// One boot for all tests.
fn visit(lab: Lab) -> Result<&'static Visit, Failed> {
    static VISITS: [OnceLock<Result<Visit, String>>; Lab::ALL.len()] = [OnceLock::new(), OnceLock::new()];
    let visit = VISITS[lab as usize].get_or_init(|| match std::env::var("NEXTEST_RUN_ID") {
        Ok(run) => shared_visit(lab, run).map_err(|error| error.to_string()),
        Err(_) => boot(lab).map_err(|error| error.to_string()),
    });
    visit.as_ref().map_err(|error| error.clone().into())
}

/// The first process of a run boots the lab, the others wait for what it finds.
fn shared_visit(lab: Lab, run: String) -> std::io::Result<Visit> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.json", lab.column()));
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if let Some(visit) = serde_json::from_str(&text).ok().filter(|visit: &Visit| visit.run == run) {
        return Ok(visit);
    }
    let visit = Visit { run, ..boot(lab)? };
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(&visit)?)?;
    Ok(visit)
}

fn run(lab: Lab, guests: &[&str]) -> std::io::Result<Output> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memvirt"));
    command.args(["lab", lab.name(), "--json"]).args(guests).output()
}

fn boot(lab: Lab) -> std::io::Result<Visit> {
    let output = run(lab, &[])?;
    let mut visit =
        Visit { complaints: String::from_utf8_lossy(&output.stderr).into_owned(), ..Visit::default() };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let report: Value = serde_json::from_str(line)?;
        let guest = report["guest"].as_str().unwrap_or_default().to_owned();
        visit.reports.insert(guest, report);
    }
    Ok(visit)
}
