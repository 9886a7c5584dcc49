//! Guests as the command line names them: built in, or a file.

use std::fs;
use std::io::Read;
use std::path::Path;

use guest_tests::{Area, GuestError, Image, Language, build};
use harness::Mmu;

/// A guest to run.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) image: Image,
}

/// Whether a name is that of a built-in guest or of an area of them, and so of no file.
pub(crate) fn is_built_in(name: &str) -> bool {
    guest_tests::built_in().any(|guest| guest.name == name) || area(name).is_some()
}

/// The area of built-in guests that has this name, unless a guest has it.
pub(crate) fn area(name: &str) -> Option<Area> {
    let area = Area::ALL.into_iter().find(|area| area.word() == name)?;
    guest_tests::built_in().all(|guest| guest.name != name).then_some(area)
}

/// Finds guests: all built-in ones of an area, or that one which [`find`] finds.
pub(crate) fn find_all(name: &str) -> Vec<Result<Source, String>> {
    let Some(area) = area(name) else { return vec![find(name)] };
    let of_area = |guest: &Source| guest.image.manifest().area == area;
    built_in().filter(|guest| guest.as_ref().map_or(true, of_area)).collect()
}

/// Finds a guest: one of the built-in ones by name, else a file. The error is one line that names the guest.
pub(crate) fn find(name: &str) -> Result<Source, String> {
    if let Some(guest) = guest_tests::built_in().find(|guest| guest.name == name) {
        return parse(name, guest.elf.to_vec());
    }
    let path = Path::new(name);
    if !path.exists() {
        let similar = similar(name).map_or_else(String::new, |guest| format!(": is it `{guest}`?"));
        return Err(format!(
            "{name}: no built-in guest of this name (`memvirt run --list`), and no such file{similar}"
        ));
    }
    let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or(name);
    let bytes = match Language::of(path) {
        Some(_) => build(path).map_err(|error| error.to_string()),
        None => read(path).map_err(|error| error.to_string()),
    };
    let bytes = bytes.map_err(|error| format!("{name}: {error}"))?;
    parse(name, bytes).map(|source| Source { name: stem.to_owned(), ..source })
}

/// The built-in guest whose name is most like one with a slip or two in it.
fn similar(name: &str) -> Option<&'static str> {
    let far = |guest: &guest_tests::Guest| strsim::osa_distance(guest.name, name);
    guest_tests::built_in().min_by_key(far).filter(|guest| far(guest) <= 2).map(|guest| guest.name)
}

/// All built-in guests; those that cannot be read are told apart.
pub(crate) fn built_in() -> impl Iterator<Item = Result<Source, String>> {
    guest_tests::built_in().map(|guest| parse(guest.name, guest.elf.to_vec()))
}

fn parse(name: &str, bytes: Vec<u8>) -> Result<Source, String> {
    let image = Image::parse(bytes).map_err(|error: GuestError| format!("{name}: {error}"))?;
    Ok(Source { name: name.to_owned(), image })
}

/// Reads a file, but no more of it than a guest may have: a device file never ends.
pub(crate) fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(guest_tests::MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// One column, or all of them.
#[derive(Clone, Copy)]
pub(crate) enum Columns {
    One(Mmu),
    All,
}

impl Columns {
    pub(crate) fn list(self) -> Vec<Mmu> {
        match self {
            Self::One(mmu) => vec![mmu],
            Self::All => Mmu::ALL.to_vec(),
        }
    }
}

impl std::str::FromStr for Columns {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "all" => Ok(Self::All),
            name => name.parse().map(Self::One).map_err(|error| format!("{error} or all")),
        }
    }
}
