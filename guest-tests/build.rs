//! Assembles and links `programs/*/*.S`, those in `multiboot` and `pvh` for 32 bits, with the linker driver that Rust
//! itself needs, and lists them beside the ELF files of `elf/`.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let (programs, drop_in) = (root.join("programs"), root.join("elf"));
    let mut guests = BTreeMap::new();
    for folder in folders(&programs) {
        // What is booted by a 32-bit protocol has 32 bits.
        let bits = if folder.ends_with("multiboot") || folder.ends_with("pvh") { "-m32" } else { "-m64" };
        for source in files(&folder, "S") {
            let elf = out.join(format!("{}.elf", name_of(&source)));
            build(&[&programs, &folder], &source, bits, &elf);
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
    for folder in [programs, drop_in] {
        println!("cargo::rerun-if-changed={}", folder.display());
    }
}

fn add(guests: &mut BTreeMap<String, PathBuf>, source: &Path, elf: PathBuf) {
    let name = name_of(source);
    if guests.insert(name.clone(), elf).is_some() {
        panic!("two guests are called {name}: rename {}", source.display());
    }
}

fn build(include: &[&Path; 2], source: &Path, bits: &str, elf: &Path) {
    let linker = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(&linker);
    command.args([bits, "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]);
    for folder in include {
        command.arg("-I").arg(folder).arg(format!("-Wa,-I,{}", folder.display()));
    }
    command.arg("-T").arg(include[0].join("guest.ld")).arg("-o").arg(elf).arg(source);
    let status = command.status().unwrap_or_else(|error| panic!("cannot run {linker:?}: {error}"));
    assert!(status.success(), "{linker:?} could not build {}: {command:?}", source.display());
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
