//! Builds the guests in `programs/*/`, those in `multiboot` and `pvh` for 32 bits, with the linker driver that Rust itself
//! needs, and lists them beside the ELF files of `elf/`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs};

use compile::compile;

#[path = "src/compile.rs"]
mod compile;

/// Assembly, C and Rust.
const SOURCES: [&str; 3] = ["S", "c", "rs"];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let (programs, drop_in) = (root.join("programs"), root.join("elf"));
    let mut guests = BTreeMap::new();
    for folder in folders(&programs) {
        for source in SOURCES.into_iter().flat_map(|extension| files(&folder, extension)) {
            let elf =
                compile(&source, &programs, &out).unwrap_or_else(|why| panic!("{}: {why}", source.display()));
            add(&mut guests, &source, elf);
        }
    }
    for elf in files(&drop_in, "elf") {
        add(&mut guests, &elf.clone(), elf);
    }
    let entries: String =
        guests.iter().map(|(name, elf)| format!("    ({name:?}, include_bytes!({elf:?})),\n")).collect();
    let list = format!("pub(crate) static BUILT_IN: &[(&str, &[u8])] = &[\n{entries}];\n");
    fs::write(out.join("built_in.rs"), list).expect("OUT_DIR is writable");
    for folder in [programs, drop_in, root.join("src/compile.rs")] {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
}

fn add(guests: &mut BTreeMap<String, PathBuf>, source: &Path, elf: PathBuf) {
    let name = name_of(source);
    if guests.insert(name.clone(), elf).is_some() {
        panic!("two guests are called {name}: rename {}", source.display());
    }
}

/// The folders of a folder: one for each area.
fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("the folder can be listed").path());
    paths.filter(|path| path.is_dir()).collect()
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("the folder can be listed").path());
    paths.filter(|path| path.extension() == Some(OsStr::new(extension))).collect()
}

fn name_of(path: &Path) -> String {
    path.file_stem()
        .and_then(OsStr::to_str)
        .unwrap_or_else(|| panic!("{} is not UTF-8", path.display()))
        .to_owned()
}
