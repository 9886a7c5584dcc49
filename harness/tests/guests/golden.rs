//! Each guest's memory at its end, as text that is kept: `golden/GUEST.txt`. `MEMVIRT_BLESS=1` writes them anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use guest_tests::Image;
use harness::{HarnessError, Machine, Mmu, map_text};
use libtest_mimic::Failed;

/// The machines whose tables are the same in every run.
const MACHINES: [Mmu; 3] = [Mmu::Ept, Mmu::Npt, Mmu::Shadow];
const HEAD: &str = "GVA                      GPA          region        slot  guest     leaf\n";

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guests/golden"))
}

fn path_of(name: &str) -> PathBuf {
    folder().join(name).with_extension("txt")
}

fn blessed() -> bool {
    std::env::var_os("MEMVIRT_BLESS").is_some()
}

/// Why there is nothing to compare a guest's map with.
pub fn missing(name: &str) -> Option<String> {
    let kept = path_of(name).exists() || blessed();
    (!kept).then(|| "no map of it is kept: MEMVIRT_BLESS=1 keeps one".to_owned())
}

/// Compares the map with the one that is kept, or keeps it.
pub fn check(name: &str, image: &Image) -> Result<(), Failed> {
    let (found, path) = (maps(image)?, path_of(name));
    if blessed() {
        return fs::write(&path, found).map_err(|error| format!("{}: {error}", path.display()).into());
    }
    match fs::read_to_string(&path) {
        Ok(kept) if kept == found => Ok(()),
        Ok(kept) => {
            Err(format!("the map has changed; MEMVIRT_BLESS=1 keeps it\n{}", difference(&kept, &found))
                .into())
        }
        Err(error) => Err(format!("{}: {error}", path.display()).into()),
    }
}

/// The maps of all machines; those that have the same share one.
fn maps(image: &Image) -> Result<String, HarnessError> {
    let mut maps: Vec<(Vec<&str>, String)> = Vec::new();
    for mmu in MACHINES {
        let mut machine = Machine::build(image.clone(), mmu.create_vm(image)?)?;
        machine.run()?;
        let text = map_text(&mut machine)?;
        match maps.iter_mut().find(|(_, known)| *known == text) {
            Some((machines, _)) => machines.push(mmu.name()),
            None => maps.push((vec![mmu.name()], text)),
        }
    }
    Ok(maps.iter().map(|(machines, text)| format!("# {}\n{HEAD}{text}", machines.join(", "))).collect())
}

/// The lines that are gone and those that are new, between the first and the last that differ.
fn difference(kept: &str, found: &str) -> String {
    let (kept, found): (Vec<_>, Vec<_>) = (kept.lines().collect(), found.lines().collect());
    let same = kept.iter().zip(&found).take_while(|(one, other)| one == other).count();
    let behind = kept[same..].iter().rev().zip(found[same..].iter().rev());
    let behind = behind.take_while(|(one, other)| one == other).count();
    let middle = |lines: &[&str], mark: char| -> String {
        lines[same..lines.len() - behind].iter().map(|line| format!("{mark} {line}\n")).collect()
    };
    format!("(line {}; - kept, + found)\n{}{}", same + 1, middle(&kept, '-'), middle(&found, '+'))
}

/// Each map that is kept is a guest's.
pub fn no_orphans() -> Result<(), Failed> {
    let guests: BTreeSet<_> = guest_tests::built_in().map(|guest| path_of(guest.name)).collect();
    for entry in fs::read_dir(folder())? {
        let path = entry?.path();
        match (guests.contains(&path), blessed()) {
            (true, _) => {}
            (false, true) => fs::remove_file(path)?,
            (false, false) => return Err(format!("{} is of no guest", path.display()).into()),
        }
    }
    Ok(())
}
